"""What was found of reuse, in words, tables and a page."""
