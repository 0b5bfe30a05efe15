"""What crosses the boundary between two stages, in one process or between two."""
