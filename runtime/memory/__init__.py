"""The memory of a process: the C library's heap, and enforced limits."""
