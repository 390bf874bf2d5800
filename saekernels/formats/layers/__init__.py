"""Checkpoints of dictionaries that span layers; one file for each format."""
