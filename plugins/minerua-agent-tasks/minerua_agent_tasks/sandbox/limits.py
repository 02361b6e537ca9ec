"""What a program may use, and how a run of it went."""

from __future__ import annotations

import math
import signal
from dataclasses import dataclass, fields

from minerua.errors import ConfigError, MineruaError

__all__ = ["Limits", "Outcome", "SandboxError", "SandboxUnavailable"]


class SandboxError(MineruaError, RuntimeError):
    """The sandbox itself could not do its work: nothing is said about the program."""


class SandboxUnavailable(SandboxError):
    """This machine does not offer what a mode needs."""


@dataclass(frozen=True)
class Limits:
    """What one run may use, all its processes together unless said otherwise.

    Args:
        seconds: Time on the wall, in seconds.
        cpu_seconds: Processor time, in seconds.
        memory_bytes: Memory in bytes: what all processes hold together, looked at every 10 ms; the address space of
            each is 15/16 of it, kept by the kernel. Files in the private folder are not in it, see `disk_bytes`.
        processes: How many processes and threads at the same time.
        file_bytes: The size of each file, in bytes.
        disk_bytes: What the private folder holds, in bytes; it lies in memory, on top of `memory_bytes`.
        disk_files: How many files and folders it holds.
        output_bytes: What is written to standard output and standard error, each, in bytes.

    Raises:
        ConfigError: Limits out of range, all of them listed.

    Example:
        >>> Limits(seconds=2.0).processes
        32
    """

    seconds: float = 10.0
    cpu_seconds: float = 10.0
    memory_bytes: int = 512 << 20
    processes: int = 32
    file_bytes: int = 16 << 20
    disk_bytes: int = 64 << 20
    disk_files: int = 4096
    output_bytes: int = 1 << 20

    def __post_init__(self) -> None:
        faults = [fault for field in fields(self) if (fault := self._fault(field.name))]
        if faults:
            raise ConfigError("the limits of a sandbox cannot be kept as they are", faults)

    def _fault(self, name: str) -> str | None:
        value, least = getattr(self, name), _LEAST.get(name, 0)
        kinds = (int, float) if name in ("seconds", "cpu_seconds") else (int,)
        if isinstance(value, bool) or not isinstance(value, kinds):
            return f"{name} is {value!r}; a number{'' if float in kinds else ' without fraction'} is needed"
        if not math.isfinite(value) or value <= 0 or not least <= value < 2**62:
            return f"{name} is {value}; it is at least {least or 'a little above 0'}, and finite"
        return None


_LEAST = {
    "memory_bytes": 16 << 20,
    "processes": 1,
    "file_bytes": 1,
    "disk_bytes": 64 << 10,
    "disk_files": 16,
    "output_bytes": 1,
}
"""Below these no program can even start."""


@dataclass(frozen=True)
class Outcome:
    """How one run went.

    Args:
        code: The program's exit code; `None` if a signal ended it.
        signal: The signal's number; `None` if it ended by itself.
        stdout: What it wrote to standard output, at most `output_bytes`.
        stderr: What it wrote to standard error, at most `output_bytes`.
        stdout_truncated: There was more.
        stderr_truncated: There was more.
        limit: The name of the limit that ended the run, a field of `Limits`; `None` if the program ended by itself,
            which it also does when it is refused memory, processes or space and gives up.
        seconds: From the program's start to its end.
        cpu_seconds: Processor time of all its processes.
        peak_bytes: The most memory that its processes held, as far as it was seen; `None` if it was not.
        shell_ended: In a session, the shell ended with this command: the next one gets a fresh one.
    """

    code: int | None
    signal: int | None
    stdout: bytes
    stderr: bytes
    stdout_truncated: bool = False
    stderr_truncated: bool = False
    limit: str | None = None
    seconds: float = 0.0
    cpu_seconds: float = 0.0
    peak_bytes: int | None = None
    shell_ended: bool = False

    @property
    def is_success(self) -> bool:
        """Whether the program ended by itself, with exit code 0."""
        return self.code == 0 and self.limit is None

    def __str__(self) -> str:
        if self.limit:
            return f"ended by the limit {self.limit} after {self.seconds:.2f} s"
        if self.signal is not None:
            names = {number.value: number.name for number in signal.Signals}
            return f"ended by the signal {names.get(self.signal, self.signal)} after {self.seconds:.2f} s"
        return f"exit code {self.code} after {self.seconds:.2f} s"
