"""Metrics as pure functions on features: tensors in, numbers out, one metric per file."""
