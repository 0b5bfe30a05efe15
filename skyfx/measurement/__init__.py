"""What each operator costs: seconds, FLOPs, saved tensors, workspace."""
