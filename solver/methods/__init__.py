"""The search methods, and the portfolio that runs them."""
