"""Structured pruning: what the model can do without is cut out of it."""
