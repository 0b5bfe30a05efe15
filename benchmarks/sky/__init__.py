"""The experiment that Sky Computing published one figure of, repeated with every metric named."""
