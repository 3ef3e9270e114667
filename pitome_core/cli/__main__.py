"""`python -m pitome_core.cli` is the command `pitome`."""

import sys

from .command import main

if __name__ == "__main__":
    sys.exit(main())
