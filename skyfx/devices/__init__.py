"""The hardware: device names, memory, cores and links."""
