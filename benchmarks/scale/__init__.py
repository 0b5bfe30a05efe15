"""How measuring and planning grow with a model, and a model larger than any host."""
