"""`guard doctor`: what is installed, what fits this machine, and what is missing."""
