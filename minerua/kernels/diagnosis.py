"""What is installed and what works: the substance of `minerua doctor`. Imports no torch and never raises."""

from __future__ import annotations

import platform
from collections.abc import Callable
from dataclasses import dataclass
from importlib import metadata

from minerua import __version__
from minerua.errors import CoreUnavailable, KernelError
from minerua.kernels import compiled, cuda, explain, num_threads


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at.

    Args:
        what: The thing.
        status: `"ok"`, `"absent"` (and perhaps not needed) or `"broken"`.
        detail: What was found.
        remedy: What to do about it; empty if nothing needs doing.
    """

    what: str
    status: str
    detail: str
    remedy: str = ""


def diagnose() -> list[Finding]:
    """Returns what was found out about this installation, one finding per thing, in a fixed order.

    Example:
        >>> diagnose()[0].what
        'minerua'
    """
    looks: list[Callable[[], list[Finding]]] = [_machine, _core, _cuda, _torch, _backends]
    return [finding for look in looks for finding in _safely(look)]


def _safely(look: Callable[[], list[Finding]]) -> list[Finding]:
    """Turns a look that fails into a finding: a doctor who faints helps nobody."""
    try:
        return look()
    except Exception as error:  # noqa: BLE001  # any fault at all is what this reports
        remedy = "report this, with the output of the command, to the authors of minerua"
        return [Finding(look.__name__.lstrip("_"), "broken", f"{type(error).__name__}: {error}", remedy)]


def _machine() -> list[Finding]:
    return [
        Finding("minerua", "ok", __version__),
        Finding("python", "ok", f"{platform.python_implementation()} {platform.python_version()}"),
        Finding("platform", "ok", platform.platform()),
    ]


def _core() -> list[Finding]:
    core = compiled.core
    if core is None:
        remedy = "reinstall minerua with a C++17 compiler; until then the slow reference is used"
        return [Finding("compiled core", "absent", compiled.absence_reason, remedy)]
    detail = f"{core.__file__}, built with {core.compiler}, {core.instruction_set()} loops"
    return [Finding("compiled core", "ok", detail), Finding("threads", "ok", str(num_threads()))]


def _cuda() -> list[Finding]:
    what, path = "libminerua_cuda.so", cuda.library_path()
    if not path.exists():
        remedy = "only needed for CUDA tensors: reinstall minerua with nvcc on PATH"
        return [Finding(what, "absent", f"{path} does not exist", remedy)]
    if reason := cuda.absence_reason():
        return [Finding(what, "broken", reason, "reinstall minerua with nvcc on PATH")]
    try:
        count = cuda.device_count()
    except CoreUnavailable as error:
        return [Finding(what, "ok", str(path)), Finding("CUDA devices", "absent", str(error), "install a newer driver")]
    return [Finding(what, "ok", str(path)), Finding("CUDA devices", "ok" if count else "absent", str(count))]


def _torch() -> list[Finding]:
    try:
        return [Finding("torch", "ok", metadata.version("torch"))]
    except metadata.PackageNotFoundError:
        return [Finding("torch", "absent", "not installed", "pip install torch")]


def _backends() -> list[Finding]:
    try:
        return [Finding(f"backend of {c.operation}", "ok", f"{c.backend}: {c.reason}") for c in explain()]
    except KernelError as error:
        return [Finding("backends", "broken", str(error), "unset MINERUA_BACKEND")]
