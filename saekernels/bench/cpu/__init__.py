"""The CPU scorecard: runs the cases, keeps the record, shows and compares it."""
