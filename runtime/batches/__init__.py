"""Where the samples of a batch are: micro-batches are cut there, and outputs joined."""
