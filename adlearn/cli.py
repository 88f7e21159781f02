"""The command line: `adlearn cache` lists what is kept on disk, `adlearn cache --clear` deletes it."""

from __future__ import annotations

import argparse
import sys

from adlearn import cache


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="adlearn", description="Deep visual anomaly detection.")
    commands = parser.add_subparsers(dest="command", required=True)
    keep = commands.add_parser("cache", help="list or clear the files that can be computed again")
    keep.add_argument("--clear", action="store_true", help="delete them")
    asked = parser.parse_args(arguments)
    if asked.clear:
        print(f"{cache.clear() / 1e6:.1f} MB freed in {cache.folder()}")
        return 0
    found = cache.files()
    for path, size in found:
        print(f"{size / 1e6:10.1f} MB  {path.name}")
    print(f"{sum(size for _, size in found) / 1e6:10.1f} MB  in {cache.folder()}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
