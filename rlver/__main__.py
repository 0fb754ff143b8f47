"""`python -m rlver` is the command `rlver`."""

from __future__ import annotations

from rlver.cli.main import main

if __name__ == "__main__":
    raise SystemExit(main())
