"""Leaving out what a model does not need: whole blocks."""
