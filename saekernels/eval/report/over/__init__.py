"""The record of a training: its curves, for a terminal and as a page."""
