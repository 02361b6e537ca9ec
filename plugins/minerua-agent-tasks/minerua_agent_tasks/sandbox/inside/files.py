"""A program's files: written where it starts."""

from __future__ import annotations

import os


def furnish(files: dict[str, bytes], home: str, room: str) -> None:
    """Makes home and working folder and writes a program's files, as the user that will run it.

    Args:
        files: Path → content; paths begin in the working folder.
        home: The home folder.
        room: The working folder; may be the same.
    """
    for folder in dict.fromkeys((home, room)):
        os.mkdir(folder, 0o700)
    for name, content in files.items():
        path = os.path.join(room, name)
        os.makedirs(os.path.dirname(path), mode=0o700, exist_ok=True)
        with open(path, "wb") as file:
            file.write(content)
    os.chdir(room)
