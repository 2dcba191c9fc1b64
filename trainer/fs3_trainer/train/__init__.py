"""Training: schedule, optimizer, the step loop, its metrics and its checkpoints."""
