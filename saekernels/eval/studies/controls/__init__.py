"""What SAEs that exist can be held against: their error, other seeds, and the bits that they need."""
