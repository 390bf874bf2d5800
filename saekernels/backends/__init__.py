"""How a primitive is computed: one module per backend, the same function names in each, a registry that picks."""
