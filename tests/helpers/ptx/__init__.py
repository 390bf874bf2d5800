"""A machine for PTX: what Triton's compiler emits for a GPU runs here in numpy, and its mistakes are found."""
