"""The screen for Hopper: its kernel in Gluon, and what starts it where it is asked for and can serve."""
