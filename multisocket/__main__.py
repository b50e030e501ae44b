"""``multisocket clean`` and ``python -m multisocket clean``."""

from __future__ import annotations

import argparse

from . import __version__, clean


def main() -> int:
    """Runs the command line."""
    parser = argparse.ArgumentParser(prog="multisocket", description="Housekeeping of multisocket.")
    parser.add_argument("--version", action="version", version=__version__)
    commands = parser.add_subparsers(required=True, metavar="command")
    cleaning = commands.add_parser("clean", help="remove what dead processes left in shared memory and socket paths")
    cleaning.set_defaults(run=_clean)
    arguments = parser.parse_args()
    return int(arguments.run())


def _clean() -> int:
    removed = clean()
    for path in removed:
        print(f"removed {path}")
    print(f"{len(removed)} removed")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
