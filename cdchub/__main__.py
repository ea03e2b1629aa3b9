"""`python -m cdchub`."""

import sys

from cdchub.cli import main

if __name__ == "__main__":
    sys.exit(main())
