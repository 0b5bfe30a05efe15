"""Methods that can prove a plan optimal."""
