"""`saekernels reuse`: the command, and how it shows what was found."""
