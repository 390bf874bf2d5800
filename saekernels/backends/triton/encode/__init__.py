"""Encoders: what the screen finds, what certifies it, and what is recomputed."""
