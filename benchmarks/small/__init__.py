"""How long small models take to be partitioned."""
