"""`saekernels reuse`: the command."""
