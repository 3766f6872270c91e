"""``python -m server`` is ``specvlm``."""

import sys

from server.cli import main

if __name__ == "__main__":
    sys.argv[0] = "specvlm"
    main()
