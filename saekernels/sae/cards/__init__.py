"""What a notebook shows of SAEs, of dictionaries that span layers, and of codes."""
