"""``python -m vadtune``."""

import sys

from vadtune.cli import main

if __name__ == "__main__":
    sys.exit(main())
