"""`python -m saekernels.cli`."""

from . import main

raise SystemExit(main())
