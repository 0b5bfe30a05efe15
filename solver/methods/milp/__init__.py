"""The mixed-integer linear program."""
