"""What the check of a pipeline costs."""
