"""How each op is computed: one module per backend, the same function names in each, and a registry that picks."""
