"""How much of a dictionary is shared between domains: what each latent does where, and what it is worth elsewhere."""
