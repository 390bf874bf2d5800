"""`saekernels over`: the command, the checkpoints that it is given, and what it measures at each."""
