"""Checkpoints that are there or not there, never half: folders under a temporary name, checked by digest when opened.

out/
    checkpoints/step-0000000120/   model.safetensors  state.safetensors  state.json  digests.json
    checkpoints/step-0000000133-stopped/                 written on a signal or an exception
    best.safetensors                                      the best weights so far, and nothing else
"""

from __future__ import annotations

import hashlib
import json
import re
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from minerua.errors import StorageError
from minerua.learning.state import Tensors, TrainingState, to_array, to_tensor
from minerua.weights import open_checkpoint, partial_folder, remove_partials, write_bytes, write_checkpoint

FOLDER = "checkpoints"
BEST = "best.safetensors"
WEIGHTS, STATE_TENSORS, STATE, DIGESTS = "model.safetensors", "state.safetensors", "state.json", "digests.json"
_NAME = re.compile(r"step-(\d{10})(-stopped)?")


@dataclass(frozen=True)
class Opened:
    """A checkpoint that was found to be whole.

    Args:
        path: Its folder.
        weights: Tensor name → tensor, on the CPU.
        state: The rest.
    """

    path: Path
    weights: Tensors
    state: TrainingState


class CheckpointManager:
    """Writes, finds and rotates the checkpoints of one run.

    Args:
        out: The run's folder.
        keep: How many regular checkpoints stay.
        metadata: Texts for the headers of weights, such as the base's digest.
    """

    def __init__(self, out: str | Path, *, keep: int = 2, metadata: Mapping[str, str] | None = None) -> None:
        self.out = Path(out)
        self.folder = self.out / FOLDER
        self.keep = keep
        self.metadata = dict(metadata or {})

    # ── writing ──────────────────────────────────────────────────────────────────────────────────────────────────────

    def save(self, state: TrainingState, weights: Mapping[str, torch.Tensor]) -> Path:
        """Writes a checkpoint; it appears whole or not at all, and then older ones go.

        Args:
            state: Its `kind` decides whether it is one of the regular ones.
            weights: Tensor name → tensor, on any device.

        Returns:
            Its folder.

        Raises:
            LearningError: If the optimizer's state cannot be written.
            StorageError: If the disk refuses; the checkpoints before are untouched.
        """
        text, tensors = state.encoded()
        _make_folder(self.folder)
        path = self.folder / _name(state.progress.step, regular=state.kind == "regular")
        if path.exists() and not damage(path):
            return path  # the same step of the same run: the same bytes
        _remove(path)
        arrays = {name: to_array(tensor) for name, tensor in weights.items()}
        others = {name: to_array(tensor) for name, tensor in tensors.items()}
        needed_bytes = len(text) + sum(one.nbytes for one in [*arrays.values(), *others.values()])
        with partial_folder(path, needed_bytes=needed_bytes) as folder:
            write_checkpoint(folder / WEIGHTS, arrays, metadata=self.metadata)
            write_checkpoint(folder / STATE_TENSORS, others)
            write_bytes(folder / STATE, text)
            write_bytes(folder / DIGESTS, json.dumps(_digests(folder), indent=1).encode())
        self._rotate(state)
        return path

    def save_best(self, weights: Mapping[str, torch.Tensor], metadata: Mapping[str, str]) -> Path:
        """Writes the best weights so far in one step.

        Raises:
            StorageError: If the disk refuses; the best before is untouched.
        """
        arrays = {name: to_array(tensor) for name, tensor in weights.items()}
        write_checkpoint(self.out / BEST, arrays, metadata={**self.metadata, **metadata})
        return self.out / BEST

    def _rotate(self, state: TrainingState) -> None:
        regular = [path for path in self.found() if not path.name.endswith("-stopped")]
        stopped = [path for path in self.found() if path.name.endswith("-stopped")]
        kept = {*regular[: self.keep], *(stopped[:1] if state.kind != "regular" else ())}
        for path in {*regular, *stopped} - kept:
            _remove(path)

    # ── finding ──────────────────────────────────────────────────────────────────────────────────────────────────────

    def found(self) -> list[Path]:
        """Returns the folders of all checkpoints, the newest first, whole or not."""
        if not self.folder.is_dir():
            return []
        named = [(found, path) for path in self.folder.iterdir() if (found := _NAME.fullmatch(path.name))]
        return [path for _, path in sorted(named, key=lambda one: (one[0][1], not one[0][2]), reverse=True)]

    def last_good(self) -> str:
        """Says which checkpoint is the newest, for messages."""
        found = self.found()
        return f"the last good checkpoint is {found[0]}" if found else "there is no checkpoint yet"

    def newest(self, *, regular: bool = False) -> tuple[Opened | None, list[str]]:
        """Opens the newest checkpoint that is whole; damaged ones are put aside under another name.

        Args:
            regular: Whether those that were written out of turn are passed over.

        Returns:
            The checkpoint, or `None` without any; and one note per damaged one.

        Raises:
            CheckpointError: If it is whole and cannot be used: another version.
        """
        notes: list[str] = []
        for path in self.found():
            if regular and path.name.endswith("-stopped"):
                continue
            fault = damage(path)
            if not fault:
                return open_state(path), notes
            aside = _put_aside(path)
            notes.append(f"checkpoint {path.name} is damaged and was put aside as {aside.name}: {fault}")
        return None, notes

    def open_best(self) -> Tensors:
        """Returns the best weights so far.

        Raises:
            CheckpointError: If they cannot be read.
        """
        return _tensors(self.out / BEST)

    def clean(self) -> None:
        """Removes what killed writers have left."""
        for folder in (self.out, self.folder):
            if folder.is_dir():
                remove_partials(folder)


def open_state(path: Path) -> Opened:
    """Reads a checkpoint whose digests were checked.

    Raises:
        CheckpointError: If it cannot be used.
    """
    state = TrainingState.decoded((path / STATE).read_bytes(), _tensors(path / STATE_TENSORS), where=str(path))
    return Opened(path, _tensors(path / WEIGHTS), state)


def damage(path: Path) -> str:
    """Returns what is wrong with the files of a checkpoint; empty if each is as it was written."""
    try:
        named = json.loads((path / DIGESTS).read_text("utf-8"))
        found = _digests(path)
    except (OSError, ValueError) as error:
        return f"{DIGESTS} cannot be read or a file is missing: {error}"
    if not isinstance(named, dict) or named.keys() != found.keys():
        return f"{DIGESTS} does not name the files"
    wrong = [name for name, digest in found.items() if named[name] != digest]
    return f"the digest of {wrong[0]} is {found[wrong[0]]}, it was written with {named[wrong[0]]}" if wrong else ""


def _digests(folder: Path) -> dict[str, str]:
    digests = {}
    for name in (WEIGHTS, STATE_TENSORS, STATE):
        digest = hashlib.blake2b(digest_size=16)
        with (folder / name).open("rb") as stream:
            while block := stream.read(1 << 20):
                digest.update(block)
        digests[name] = digest.hexdigest()
    return digests


def _tensors(path: Path) -> Tensors:
    checkpoint = open_checkpoint(path)
    return {name: to_tensor(checkpoint.tensor(name)) for name in checkpoint.specs}


def _name(step: int, *, regular: bool) -> str:
    return f"step-{step:010d}{'' if regular else '-stopped'}"


def _put_aside(path: Path) -> Path:
    aside = path.with_name(f"{path.name}.damaged")
    _remove(aside)
    try:
        return path.rename(aside)
    except OSError as error:
        raise StorageError(f"{path} is damaged and cannot be put aside: {error.strerror or error}") from error


def _remove(path: Path) -> None:
    if path.exists():
        shutil.rmtree(path, ignore_errors=True)  # what stays is older than what was written, or damaged


def _make_folder(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise StorageError(
            f"cannot create the folder {folder}: {error.strerror or error}; choose another one"
        ) from error


def compare_runs(saved: Mapping[str, Any], here: Mapping[str, Any]) -> list[str]:
    """Returns one fault per key in which a checkpoint's run differs from this one, with both sides."""
    keys = sorted({*saved, *here})
    return [
        f"{key}: the checkpoint has {json.dumps(saved.get(key))}, this run has {json.dumps(here.get(key))}"
        for key in keys
        if saved.get(key) != here.get(key)
    ]
