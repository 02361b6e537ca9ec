"""`python -m minerua_segmentation OUT`: writes four small worlds of images and masks."""

from __future__ import annotations

import argparse
import sys

from minerua.errors import MineruaError

from .writing import write_worlds

__all__ = ["main"]


def main(arguments: list[str] | None = None) -> int:
    """Writes worlds as the command line says; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m minerua_segmentation", description=__doc__)
    parser.add_argument("out", metavar="OUT", help="the folder")
    parser.add_argument("--seed", type=int, default=0, help="of everything random; default: 0")
    parser.add_argument("--learned", type=int, default=240, help="images per world to learn from; default: 240")
    parser.add_argument("--items", type=int, default=200, help="images per world to score on; default: 200")
    parser.add_argument("--size", type=int, default=64, help="height and width in pixels; default: 64")
    given = vars(parser.parse_args(arguments))
    try:
        counts = write_worlds(given.pop("out"), **given)
    except MineruaError as error:
        sys.stderr.write(f"{parser.prog}: {error}\n")
        return 2
    for name, count in counts.items():
        sys.stdout.write(f"{name}: {count} images with masks\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
