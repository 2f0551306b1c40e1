"""`caan`, and `python -m caan`, for `torchrun -m caan`."""

import sys


def main() -> int:
    """Run `caan`; Ctrl-C while it is still imported ends it as quietly as later."""
    try:
        from . import commands

        return commands.main()
    except KeyboardInterrupt:
        print("caan: stopped", file=sys.stderr)
        return 130


if __name__ == "__main__":
    sys.exit(main())
