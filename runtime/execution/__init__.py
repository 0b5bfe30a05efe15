"""One training or inference step: stages, their actions, and who runs them."""
