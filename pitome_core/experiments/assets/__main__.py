"""The command line of the assets: ``python -m pitome_core.experiments.assets``."""

import sys

from pitome_core.experiments.assets import main

if __name__ == "__main__":
    sys.exit(main())
