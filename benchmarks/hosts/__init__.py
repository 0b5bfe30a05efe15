"""What skyfx's plans bring on unlike hosts, against what one would do otherwise."""
