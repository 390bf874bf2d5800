"""`saekernels controls`: the command, and how it shows what was found."""
