"""Links between two stages, in one process or between two."""
