"""A program's files: written where it starts."""

from __future__ import annotations

import os


def furnish(files: dict[str, bytes], folder: str) -> None:
    """Makes home and working folder and writes a program's files, as the user that will run it."""
    for name in ("home", "room"):
        os.mkdir(f"{folder}/{name}", 0o700)
    for name, content in files.items():
        path = f"{folder}/room/{name}"
        os.makedirs(os.path.dirname(path), mode=0o700, exist_ok=True)
        with open(path, "wb") as file:
            file.write(content)
    os.chdir(f"{folder}/room")
