"""python -m refvit"""

import sys

from refvit.cli import main

if __name__ == "__main__":
    sys.exit(main())
