"""``python -m kftune``."""

import sys

from kftune.cli import main

if __name__ == "__main__":
    sys.exit(main())
