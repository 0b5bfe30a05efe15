"""What a given plan costs in time and memory."""
