"""What values and code hold: read, compared and written back."""
