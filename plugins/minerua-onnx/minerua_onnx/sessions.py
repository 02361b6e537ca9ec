"""Sessions of onnxruntime, set up by a plan.

A process chooses once where its sessions get their threads: each from a pool of its own, or all from one that they
share. onnxruntime refuses the one after it was asked for the other. The first session that is opened here decides;
what later asks for the other choice gets the one that was made, its results are the same, and a warning says so.
"""

from __future__ import annotations

import os
import re
import threading
import warnings
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, final

from minerua.errors import ChainError
from minerua.values import Setup

if TYPE_CHECKING:
    import onnxruntime

THREADS_VARIABLE = "MINERUA_ONNX_THREADS"
"""Environment variable: how many threads the shared pool has; by default as many as this process has processors."""

OPTIMIZATIONS = ("none", "basic", "extended", "all")
"""How far onnxruntime rewrites a graph before it runs it."""

_DEVICE = re.compile(r"(cpu|cuda)(:[0-9]{1,4})?")
_LEVELS = ("ORT_DISABLE_ALL", "ORT_ENABLE_BASIC", "ORT_ENABLE_EXTENDED", "ORT_ENABLE_ALL")


@final
@dataclass(frozen=True)
class SessionChoice:
    """What a chain says about a model's session, whatever the plan.

    Args:
        providers: What onnxruntime runs it on, best first; empty leaves it to the plan's device.
        optimization: One of `OPTIMIZATIONS`.
    """

    providers: tuple[str, ...] = ()
    optimization: str = "all"


@final
class _Threads:
    """Where the sessions of this process get their threads from."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._process, self._shared, self._warned = 0, False, False

    def share(self, wanted: bool) -> bool:
        """Returns whether a session that is opened now shares its threads; the first one decides for all."""
        with self._lock:
            if not self._process:
                self._process, self._shared = os.getpid(), wanted
                if wanted:
                    _make_pool()
            if self._shared and self._process != os.getpid():
                raise ChainError(
                    "this process is a copy of one whose ONNX models share threads, which a copy does not have; "
                    "start it anew (multiprocessing's 'spawn'), or load models after the copy only"
                )
            if wanted != self._shared and not self._warned:
                self._warned = True
                warnings.warn(_other_choice(wanted), RuntimeWarning, stacklevel=4)
            return self._shared


_THREADS = _Threads()


def _make_pool() -> None:
    import onnxruntime

    onnxruntime.set_global_thread_pool_sizes(pool_threads(), 1)


def _other_choice(wanted: bool) -> str:
    here, there = ("one pool for all", "a pool for each") if wanted else ("a pool for each", "one pool for all")
    return (
        f"a plan asks for ONNX sessions with {here}, but this process began with {there}, and onnxruntime allows one "
        "of the two per process; it runs as it began, with the same results. Run such chains in processes of their own"
    )


def processors() -> int:
    """Returns how many processors this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def pool_threads() -> int:
    """Returns how many threads the shared pool has.

    Raises:
        ChainError: If the environment says something that is not a count.
    """
    text = os.environ.get(THREADS_VARIABLE, "")
    if not text:
        return processors()
    if not text.isascii() or not text.isdigit() or not 1 <= int(text[:6]) <= 1024:
        raise ChainError(f"{THREADS_VARIABLE} is {text!r:.40}; expected a count from 1 to 1024")
    return int(text)


def setups() -> tuple[Setup, ...]:
    """Returns what a plan may choose from: as onnxruntime does by itself, one thread, several, all from one pool."""
    counts = dict.fromkeys((1, min(2, processors()), processors()))
    return (Setup(), *(Setup(threads=count) for count in counts), Setup(shared_threads=True))


# ── opening ──────────────────────────────────────────────────────────────────────────────────────────────────────────


def open_session(content: str | bytes, setup: Setup, choice: SessionChoice, title: str) -> onnxruntime.InferenceSession:
    """Opens a session.

    Args:
        content: A path, or a model's bytes.
        setup: The plan's. `threads=1` needs no pool; several do not spin, because a plan that counts threads has
            something else to run on the others. With `shared_threads` the pool's size is that of the process, and a
            different `threads` is refused.
        choice: The chain's.
        title: What messages call the model.

    Raises:
        ChainError: If onnxruntime cannot load the model, has not what the device needs, or shares a pool of another
            size.
    """
    import onnxruntime

    for fault in provider_faults(setup.device, choice):
        raise ChainError(f"{title}: {fault}")
    providers = _providers(setup.device, choice)
    if setup.shared_threads and setup.threads not in (None, pool_threads()):
        raise ChainError(
            f"{title}: a plan asks for {setup.threads} shared threads; the pool of this process has {pool_threads()}, "
            f"set by {THREADS_VARIABLE} before the first model is loaded"
        )
    options = _options(setup, choice, _THREADS.share(setup.shared_threads))
    try:
        session = onnxruntime.InferenceSession(content, options, providers=providers)
    except Exception as error:  # its errors have no parent of their own but Exception
        raise ChainError(
            f"{title}: onnxruntime {onnxruntime.__version__} cannot load it: {first_line(error)}"
        ) from error
    wanted = providers[0][0] if isinstance(providers[0], tuple) else providers[0]
    if wanted not in session.get_providers():
        raise ChainError(f"{title}: {wanted} could not be started; onnxruntime's own messages say why")
    return session


def first_line(error: Exception) -> str:
    """Returns what onnxruntime says, in one line."""
    return " ".join(str(error).split())[:400]


def _options(setup: Setup, choice: SessionChoice, shared: bool) -> Any:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4  # what is wrong is raised; a second report on stderr helps nobody
    level = _LEVELS[OPTIMIZATIONS.index(choice.optimization)]
    options.graph_optimization_level = getattr(onnxruntime.GraphOptimizationLevel, level)
    if shared:
        options.use_per_session_threads = False
    elif setup.threads is not None or setup.shared_threads:
        options.intra_op_num_threads = setup.threads or pool_threads()
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    return options


def provider_faults(device: str, choice: SessionChoice) -> list[str]:
    """Returns why this machine has not what a device or a choice needs, one fault each; empty when it has."""
    import onnxruntime

    if not _DEVICE.fullmatch(device):
        return [f"the device {device!r:.80} is not known; write cpu, cuda or cuda:0"]
    available = onnxruntime.get_available_providers()
    remedy = "For NVIDIA GPUs install onnxruntime-gpu in its place, or choose another device"
    wanted = (one[0] if isinstance(one, tuple) else one for one in _providers(device, choice))
    missing = [name for name in wanted if name not in available]
    return [f"this onnxruntime has no {name:.80}; it has {', '.join(available)}. {remedy}" for name in missing]


def _providers(device: str, choice: SessionChoice) -> list[Any]:
    """Returns the providers for a device, or those that the chain names."""
    if choice.providers:
        return list(choice.providers)
    kind, _, number = device.partition(":")
    others = [("CUDAExecutionProvider", {"device_id": int(number or 0)})] if kind == "cuda" else []
    return [*others, "CPUExecutionProvider"]
