"""Probes: what a linear classifier finds in activations, in an SAE's latents, and in what the SAE leaves out."""
