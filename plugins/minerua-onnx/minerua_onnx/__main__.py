"""`python -m minerua_onnx FOLDER`: makes the example world."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path


def main(arguments: list[str] | None = None) -> int:
    """Makes the world and prints how well its models tell numbers."""
    parser = argparse.ArgumentParser(
        prog="python -m minerua_onnx", description="Makes a folder with a chain that runs."
    )
    parser.add_argument("folder", type=Path, help="where; made if it does not exist")
    parser.add_argument("--seed", type=int, default=0, help="of everything random; default 0")
    chosen = parser.parse_args(arguments)
    try:
        import onnxscript  # noqa: F401 - torch's exporter needs it, and says so only after everything was learned
        import torch  # noqa: F401
    except ModuleNotFoundError as error:
        print(f"making the world needs {error.name}; pip install 'minerua-onnx[world]'", file=sys.stderr)
        return 2
    from minerua_onnx.world import make_world

    for name, accuracy in make_world(chosen.folder, seed=chosen.seed).items():
        print(f"{name:12} {accuracy:.1%}")
    print(f"minerua chain run {chosen.folder / 'chain.yaml'} --input image={chosen.folder / 'samples/0.png'}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
