"""Training a compressed model to answer as the original does, on calls recorded from the original."""
