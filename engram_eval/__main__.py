"""``python -m engram_eval``: the command line."""

import sys

from engram_eval.cli import main

if __name__ == "__main__":
    sys.exit(main())
