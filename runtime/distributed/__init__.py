"""The processes of a job: they meet, exchange messages, and notice a loss."""
