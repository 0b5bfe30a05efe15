"""What follows the search: schedules, memory peaks, the simulated step."""
