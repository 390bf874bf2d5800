"""`python -m saekernels.cli`."""

from saekernels.cli import main

raise SystemExit(main())
