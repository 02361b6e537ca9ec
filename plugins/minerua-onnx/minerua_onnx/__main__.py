"""`python -m minerua_onnx FOLDER`: makes the example world."""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path

from minerua.errors import ConfigError, MineruaError, StorageError

MOST_SEED = 2**31 - 1


def main(arguments: list[str] | None = None) -> int:
    """Makes the world and prints how well its models tell numbers."""
    parser = argparse.ArgumentParser(
        prog="python -m minerua_onnx", description="Makes a folder with a chain that runs."
    )
    parser.add_argument("folder", type=Path, help="where; new or empty")
    parser.add_argument("--seed", type=_seed, default=0, help="of everything random; default 0")
    chosen = parser.parse_args(arguments)
    try:
        _make(chosen.folder, chosen.seed)
    except MineruaError as error:
        print(f"minerua_onnx: {error}", file=sys.stderr)
        return 2
    print(f"minerua chain run {chosen.folder / 'chain.yaml'} --input image={chosen.folder / 'samples/0.png'}")
    return 0


def _seed(text: str) -> int:
    """Returns the seed that a text is.

    Raises:
        ArgumentTypeError: If it is none.
    """
    if not text.isascii() or not text.isdigit() or int(text[:11]) > MOST_SEED:
        raise argparse.ArgumentTypeError(f"{text[:40]!r} is no seed; expected a whole number from 0 to {MOST_SEED}")
    return int(text)


def _make(folder: Path, seed: int) -> None:
    """Makes the world and prints the accuracies.

    Raises:
        ConfigError: If the folder holds something, or what learning needs is not installed.
        StorageError: If the folder cannot be made or written.
    """
    try:
        _must_be_free(folder)
        import onnxscript  # noqa: F401 - torch's exporter needs it, and says so only after everything was learned
        import torch  # noqa: F401

        from minerua_onnx.world import make_world

        for name, accuracy in make_world(folder, seed=seed).items():
            print(f"{name:12} {accuracy:.1%}")
    except ModuleNotFoundError as error:
        raise ConfigError(f"making the world needs {error.name}; pip install 'minerua-onnx[world]'") from error
    except OSError as error:
        raise StorageError(f"cannot make a world in {folder}: {error.strerror or error}; choose another one") from error


def _must_be_free(folder: Path) -> None:
    """Makes sure that nothing would be overwritten, and that a folder that is there can be written.

    Raises:
        ConfigError: If something is in it.
        OSError: If it is no folder, or cannot be written.
    """
    if not folder.exists():
        return
    if any(folder.iterdir()):
        raise ConfigError(f"the folder {folder} is not empty; choose a new or an empty one for the world")
    tempfile.TemporaryFile(dir=folder).close()  # before half a minute of learning, not after


if __name__ == "__main__":
    sys.exit(main())
