"""What is measured: one file per op or whole layer, and the table of them."""
