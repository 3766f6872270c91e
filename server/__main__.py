"""``python -m server`` is ``specvlm``."""

from server.cli import main

if __name__ == "__main__":
    main()
