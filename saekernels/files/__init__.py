"""A file appears whole or not at all, and says when it is damaged."""
