"""``python -m trnsim``: the command ``trnsim``."""

from trnsim.cli import main

if __name__ == "__main__":
    main()
