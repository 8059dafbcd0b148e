"""``python -m nettrim_solver`` is the command ``nettrim``."""

import sys

from .cli import main

if __name__ == "__main__":
    sys.exit(main())
