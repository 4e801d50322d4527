"""python -m omnirouter: the same as the `omnirouter` command; torchrun starts it this way."""

import sys

from omnirouter.cli import main

if __name__ == "__main__":
    sys.exit(main())
