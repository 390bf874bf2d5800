"""Forward passes over batches: planned, run, and reused where layers repeat."""
