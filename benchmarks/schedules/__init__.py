"""What schedules made for a plan take beside 1F1B, in simulated steps."""
