"""The composition root: the only room that knows all others. A run file in; a journal, a model and a report out."""

from __future__ import annotations

from pathlib import Path

from minerua.errors import StorageError
from minerua.evolution import Journal, read_journal
from minerua.registry import Registry
from minerua.report import Summary
from minerua.run.evolve import Progress, evolve
from minerua.run.exhibits import exhibit, kept_exhibits
from minerua.run.finish import finish, write_results
from minerua.run.preflight import Announce
from minerua.run.prepare import Prepared, prepare
from minerua.run.record import Record
from minerua.weights import remove_partials

__all__ = ["JOURNAL", "Announce", "Prepared", "Progress", "execute", "kept_exhibits", "make_folder", "prepare"]

JOURNAL = "journal.jsonl"


def execute(
    path: str | Path,
    *,
    registry: Registry,
    out: str | Path | None = None,
    resume: bool = False,
    progress: Progress | None = None,
    announce: Announce | None = None,
    workers: int = 1,
) -> Summary:
    """Carries out a run file, or continues it where it stopped.

    A run that was killed, at whatever moment, and is resumed writes the bytes that an uninterrupted run would have
    written.

    Args:
        path: The run file.
        registry: Where models, evaluators and merge methods are found.
        out: The folder for journal and results; default: that of the run file.
        resume: Whether a journal that exists is continued; without one the run begins.
        progress: Called after every child with children told, children in all, and the best mean search score.
        announce: Called with how alike the experts are, once, before the first seed of a fresh run is scored.
        workers: How many items an evaluator may work on at the same time; no outcome depends on it.

    Returns:
        The run in numbers.

    Raises:
        ConfigError: If the run file, the plugins, the weights or the items are not in order; nothing was written then.
        JournalError: If the journal exists and `resume` is not given, belongs to another run, is in use or is damaged.
        EvolutionError: If no expert can be scored.
        StorageError: If something cannot be written; the run can be resumed.
    """
    prepared = prepare(path, registry, workers=workers)
    folder = Path(path).parent if out is None else Path(out)
    make_folder(folder)
    with Journal(folder / JOURNAL, fresh=not resume) as journal:
        remove_partials(folder)
        record = Record(journal)
        population = evolve(prepared, record, progress, announce)
        best = finish(record, prepared, population)
        exhibits = exhibit(folder, registry, prepared, population, best)
    return write_results(folder, population, best, read_journal(folder / JOURNAL), exhibits)


def make_folder(folder: Path) -> None:
    """Creates a folder and its parents.

    Raises:
        StorageError: If that is not possible.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise StorageError(
            f"cannot create the folder {folder}: {error.strerror or error}; choose another one"
        ) from error
