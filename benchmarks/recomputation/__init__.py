"""Recomputation at operators, beside whole layers and uniform checkpoints."""
