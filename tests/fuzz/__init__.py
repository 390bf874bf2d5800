"""Fuzzing of ops and readers; `python tests/fuzz --help`."""
