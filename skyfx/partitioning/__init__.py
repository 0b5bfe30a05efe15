"""From a plan and a captured graph to stages with their parameters."""
