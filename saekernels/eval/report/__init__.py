"""Finished figures as data, words, tables and pages; touches no model and no run folder."""
