"""Whether the stages compute what the model computes."""
