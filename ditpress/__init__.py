"""ditpress: make pretrained Diffusion Transformers small and fast after training."""
