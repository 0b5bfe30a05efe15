"""The documents: graph, cluster, plan, schedule, and their files."""
