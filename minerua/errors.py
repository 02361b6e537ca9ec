"""Every error that minerua raises on purpose, in one tree.

    MineruaError
    ├── ConfigError       (ValueError)    a run file, a recipe or a command line; lists all faults
    ├── CheckpointError   (ValueError)    weights on disk or in memory that do not fit; lists all faults
    ├── PluginError
    │   ├── DuplicateName (ValueError)    two plugins provide one name
    │   ├── UnknownName   (LookupError)   nobody provides the name
    │   └── BrokenPlugin  (RuntimeError)  a plugin that cannot be imported or validated
    ├── KernelError       (ValueError)    arrays that the numerical core cannot take
    ├── CoreUnavailable   (RuntimeError)  the compiled core, or its CUDA half, is missing
    ├── EvolutionError    (ValueError)    an ask or a tell that the cycle cannot accept
    ├── JournalError      (ValueError)    a journal that cannot be read or continued
    ├── LearningError     (ValueError)    a training run that cannot begin or go on; lists all faults
    │   └── OutOfMemory   (MemoryError)   a batch that does not fit into memory
    ├── LearningStopped   (RuntimeError)  a training run that was asked to end by a signal, and saved itself
    ├── ChainError        (ValueError)    a chain that cannot be run as it is written; lists all faults
    ├── StepFailed        (RuntimeError)  a step of a chain raised, returned what it may not, or was stopped
    │   └── StepTimeout   (TimeoutError)  it took longer than it may
    ├── RunCancelled      (RuntimeError)  whoever asked for a run withdrew it
    ├── PoolError
    │   ├── RequirementTooLarge (ValueError)    more than the pool has, whoever waits
    │   ├── PoolTimeout         (TimeoutError)  the resources did not come free in time
    │   ├── PoolClosed          (RuntimeError)  nothing is granted any more
    │   ├── LeaseCancelled      (RuntimeError)  the request was withdrawn
    │   ├── NestedAcquire       (RuntimeError)  whoever holds a lease asks for another one, which could deadlock
    │   └── AllocationError     (MemoryError)   more memory than the lease has left
    └── StorageError      (OSError)       the disk is full, or a folder cannot be written

Each is also a child of the built-in in brackets, so that code which knows nothing of minerua catches what it
expects. A message says what was asked, what was found, where, and what to do next.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence


class MineruaError(Exception):
    """The root: everything that minerua raises on purpose.

    Args:
        message: What is wrong, in one sentence or more.
        faults: All single faults behind the message, each with its place and its remedy; listed under the message.
    """

    def __init__(self, message: str, faults: Iterable[str] = ()) -> None:
        self.message = message
        self.faults: tuple[str, ...] = tuple(faults)
        super().__init__(message)

    def __str__(self) -> str:
        return "\n".join([self.message, *(f"  - {fault}" for fault in self.faults)])


class ConfigError(MineruaError, ValueError):
    """A run file, a recipe or a command line that cannot be carried out."""


class CheckpointError(MineruaError, ValueError):
    """Weights, on disk or in memory, that are malformed or do not fit together."""


class PluginError(MineruaError):
    """Something is wrong with a plugin; the children say what."""


class DuplicateName(PluginError, ValueError):
    """Two plugins provide the same name for the same kind of thing."""


class UnknownName(PluginError, LookupError):
    """No plugin provides the name that was asked for."""


class BrokenPlugin(PluginError, RuntimeError):
    """A plugin that cannot be imported, or whose specs are not valid."""


class KernelError(MineruaError, ValueError):
    """Arrays whose shapes, dtypes, strides or devices the numerical core cannot take."""


class CoreUnavailable(MineruaError, RuntimeError):
    """The compiled core, or its CUDA half, is needed and cannot be used; the message says why."""


class EvolutionError(MineruaError, ValueError):
    """An ask or a tell that the cycle cannot accept."""


class JournalError(MineruaError, ValueError):
    """A journal that cannot be read, or that belongs to another run."""


class LearningError(MineruaError, ValueError):
    """A training run that cannot begin, or cannot go on."""


class OutOfMemory(LearningError, MemoryError):
    """A batch that does not fit into memory; the message says which, and what to change."""


class LearningStopped(MineruaError, RuntimeError):
    """A training run that was asked to end by a signal, and saved itself before it did.

    Args:
        message: What was saved where.
        faults: None.
        signal: The signal's number.
    """

    def __init__(self, message: str, faults: Iterable[str] = (), *, signal: int = 0) -> None:
        super().__init__(message, faults)
        self.signal = signal


class ChainError(MineruaError, ValueError):
    """A chain whose steps do not fit together, or cannot be found."""


class StepFailed(MineruaError, RuntimeError):
    """A step of a chain that raised, returned what it may not, or was stopped.

    Args:
        message: Names the chain, the step, the skill, its plugin and the shapes of the inputs.
        faults: The single faults behind it.
        chain: The chain's name.
        step: The step's name.
        skill: The skill's name.
    """

    def __init__(
        self, message: str, faults: Iterable[str] = (), *, chain: str = "", step: str = "", skill: str = ""
    ) -> None:
        super().__init__(message, faults)
        self.chain, self.step, self.skill = chain, step, skill


class StepTimeout(StepFailed, TimeoutError):
    """A step that took longer than it may."""


class RunCancelled(MineruaError, RuntimeError):
    """A run that was withdrawn by whoever asked for it."""


class PoolError(MineruaError):
    """Something is wrong with a request to the resource pool; the children say what."""


class RequirementTooLarge(PoolError, ValueError):
    """A request for more than the pool has: it would wait for ever."""


class PoolTimeout(PoolError, TimeoutError):
    """A request that was not granted in time."""


class PoolClosed(PoolError, RuntimeError):
    """A pool that grants nothing any more."""


class LeaseCancelled(PoolError, RuntimeError):
    """A request that was withdrawn while it waited."""


class NestedAcquire(PoolError, RuntimeError):
    """A request by somebody who already holds a lease of the same pool: two such could wait for each other."""


class AllocationError(PoolError, MemoryError):
    """An allocation of more memory than the lease has left."""


class StorageError(MineruaError, OSError):
    """A file or folder that cannot be written: a full disk, missing rights."""


def unknown(kind: str, name: str, known: Sequence[str]) -> str:
    """Returns the sentence for a name that nobody provides, with the nearest known ones.

    Args:
        kind: What was looked up, for example `"evaluator"`.
        name: The name that was asked for.
        known: Every name that exists, in any order.

    Example:
        >>> unknown("loss", "focla", ["focal", "huber"])
        "no loss is named 'focla'; did you mean 'focal'? Known: focal, huber"
    """
    import difflib  # few runs name what nobody provides

    nearest = difflib.get_close_matches(name, known, n=2)
    hint = f"; did you mean {' or '.join(repr(n) for n in nearest)}?" if nearest else "."
    return f"no {kind} is named {name!r}{hint} Known: {', '.join(sorted(known)) or 'none'}"
