"""Dictionaries that span layers: codes of one layer that write at several, and what a forward pass keeps of them."""
