"""`python -m minerua_agent_tasks.world OUT`: writes a world."""

from __future__ import annotations

import argparse
import sys

from minerua.errors import MineruaError

from .writing import Sizes, write_world


def main(arguments: list[str] | None = None) -> int:
    """Writes a world as the command line says; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m minerua_agent_tasks.world", description=write_world.__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("out", metavar="OUT", help="the folder")
    parser.add_argument("--seed", type=int, default=0, help="of everything random")
    for name, size in vars(Sizes()).items():
        parser.add_argument(f"--{name}", type=int, default=size, help=f"default: {size}")
    given = vars(parser.parse_args(arguments))
    out, seed = given.pop("out"), given.pop("seed")
    try:
        write_world(out, seed=seed, sizes=Sizes(**given))
    except MineruaError as error:
        sys.stderr.write(f"{parser.prog}: {error}\n")
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
