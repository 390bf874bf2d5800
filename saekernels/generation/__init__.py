"""Latents watched and edited while a model writes: transformers generates, and this attaches to it."""
