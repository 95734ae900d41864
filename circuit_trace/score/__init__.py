"""model + data → scores: which edges matter for a metric, and how well a circuit of them does."""
