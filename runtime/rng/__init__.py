"""Plain torch's random numbers under any plan."""
