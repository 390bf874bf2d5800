"""`python -m saekernels`, which is what `torchrun -m saekernels` starts: the command `saekernels`."""

from saekernels_command import main

raise SystemExit(main())
