"""Methods that find good plans quickly and prove nothing."""
