"""Run in an interpreter of its own: imports one plugin, calls its hooks, and writes down what that did to the process.

It watches what a user would never look for: the working directory, random states, warnings filters, files written.
"""

from __future__ import annotations

import gc
import importlib
import importlib.metadata
import json
import locale
import logging
import os
import random
import signal
import sys
import threading
import time
import warnings
from pathlib import Path
from typing import Any

HEAVY = ("torch", "transformers", "tensorflow", "jax", "onnxruntime", "sklearn", "scipy", "pandas", "matplotlib")
"""What `minerua plugins list` must not have to import; a second and more each, or nearly."""
_ACTS = frozenset(
    {"os.system", "os.mkdir", "os.remove", "os.rename", "os.rmdir", "os.fork", "subprocess.Popen", "socket.connect"}
)


def state() -> dict[str, Any]:
    """Returns what belongs to the whole process, by what it is called in a message."""
    import numpy as np

    return {
        "the working directory": os.getcwd(),
        "the environment variables": dict(os.environ),
        "sys.path": list(sys.path),
        "sys.excepthook": sys.excepthook,
        "sys.stdout": (sys.stdout, sys.stderr),
        "the recursion limit": sys.getrecursionlimit(),
        "the filters of warnings": list(warnings.filters),
        "the root logger": (logging.root.level, list(logging.root.handlers), logging.root.manager.disable),
        "the random state of Python": random.getstate(),
        "the random state of numpy": repr(np.random.get_state(legacy=True)),
        "how numpy reports overflow": np.geterr(),
        "the handlers of signals": {number: signal.getsignal(number) for number in signal.valid_signals()},
        "the number of threads": threading.active_count(),
        "the locale": locale.setlocale(locale.LC_ALL),
        "the garbage collector": (gc.isenabled(), gc.get_threshold()),
        **_torch_state(),
    }


def _torch_state() -> dict[str, Any]:
    torch = sys.modules.get("torch")  # looked at where it is there before; the probe is run a second time with it
    if torch is None:
        return {}
    return {
        "torch's default dtype": torch.get_default_dtype(),
        "torch's number of threads": torch.get_num_threads(),
        "torch's random state": torch.get_rng_state().tolist(),
        "torch's gradient mode": torch.is_grad_enabled(),
        "torch's deterministic mode": torch.are_deterministic_algorithms_enabled(),
    }


def load(place: str, value: str, distribution: str) -> Any:
    """Returns the plugin: `place` is `"module"`, or the name of an entry point of the distribution."""
    if place == "module":
        return importlib.import_module(value)
    entries = importlib.metadata.distribution(distribution).entry_points
    return next(entry for entry in entries if (entry.group, entry.name) == ("minerua", place)).load()


def probe(place: str, value: str, distribution: str) -> dict[str, Any]:
    """Loads a plugin and calls its hooks.

    Returns:
        `reason`, why it is quarantined or `None`; `changed`, what it changed; `acts`, what it did outside; `heavy`,
        what it imported; `seconds` of the processor.
    """
    from minerua.registry import Registry

    acts = list[str]()
    sys.addaudithook(lambda event, arguments: _note(acts, event, arguments))
    loaded, before, start = set(sys.modules), state(), time.process_time()
    acts.clear()  # what the probe itself opened
    try:
        plugin = load(place, value, distribution)
    except (Exception, SystemExit) as error:  # noqa: BLE001 - strangers may raise anything
        plugin, reason = None, f"{type(error).__name__}: {error}"
    else:
        reason = Registry.of(plugin).plugins[0].reason or ""
    seconds, done = time.process_time() - start, list(acts)
    after = state()
    heavy = [name for name in HEAVY if name in sys.modules and name not in loaded]
    changed = [what for what in before if before[what] != after[what]]
    return {"reason": reason, "changed": changed, "acts": done, "heavy": heavy, "seconds": seconds}


def _note(acts: list[str], event: str, arguments: tuple[Any, ...]) -> None:
    writes = event == "open" and isinstance(arguments[1], str) and bool(set(arguments[1]) & set("wax+"))
    if (writes and isinstance(arguments[0], str | bytes)) or event in _ACTS:
        acts.append(f"{event} {arguments[0]!r:.120}")


def main(arguments: list[str]) -> None:
    """Probes a plugin and writes what came of it as JSON.

    Args:
        arguments: Place, value, distribution, the file to write, and whether torch is imported first.
    """
    sys.dont_write_bytecode = True
    place, value, distribution, out, torch_first = arguments
    if torch_first == "torch-first":
        importlib.import_module("torch")
    Path(out).write_text(json.dumps(probe(place, value, distribution)), encoding="utf-8")


if __name__ == "__main__":
    main(sys.argv[1:])
