"""What is predicted, and what comes true on unlike hosts."""
