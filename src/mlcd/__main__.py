"""`python -m mlcd` is the same program as `mlcd`."""

from mlcd.cli import main

raise SystemExit(main())
