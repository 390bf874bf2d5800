"""The record of layers replaced together: its schema, and its page."""
