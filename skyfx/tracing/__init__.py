"""torch.export, made to take any model."""
