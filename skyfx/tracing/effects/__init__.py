"""What a forward and its hooks do besides returning values, and what becomes of it."""
