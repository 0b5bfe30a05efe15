"""Save and load training state, by parameter names, on any number of processes."""
