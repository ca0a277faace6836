"""The console script, `python -m counterplay`, and so `accelerate launch -m counterplay`."""

import sys
from typing import Any


def main() -> Any:
    """`cli.main`; an interrupt while it is still being imported, or outside of any command, ends it in a word too."""
    try:
        from counterplay.cli import main as begin

        return begin()
    except KeyboardInterrupt:
        sys.stderr.write("stopped\n")
        return 130


if __name__ == "__main__":
    sys.exit(main())
