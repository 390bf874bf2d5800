"""`saekernels generate`: the command, its prompts, and how texts and events are shown."""
