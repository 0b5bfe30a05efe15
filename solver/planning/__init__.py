"""The front door: from a graph and a cluster to a plan with a certificate."""
