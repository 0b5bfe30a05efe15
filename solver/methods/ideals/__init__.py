"""Order ideals of the graph, and the states of the devices."""
