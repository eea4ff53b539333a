"""`python -m flatq`."""

from __future__ import annotations

from flatq.cli import main

if __name__ == "__main__":
    main()
