"""Check, explain, compare and draw a plan."""
