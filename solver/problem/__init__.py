"""The compiled instance that all methods work on."""
