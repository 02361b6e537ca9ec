"""Looks at wheels before anybody installs them, and packs the CUDA library into one of its own.

    python .ci/wheel.py check dist/minerua-0.1.0-cp312-cp312-manylinux_2_28_x86_64.whl
    python .ci/wheel.py pack-cuda build/libminerua_cuda.so dist

`check` leaves with 1 and every fault: a module that shows more than its entry, is larger than it may be, or needs a
newer glibc or libstdc++ than its tag promises. `pack-cuda` writes `minerua_cuda-VERSION-py3-none-PLATFORM.whl`, which
holds one file, `minerua/libminerua_cuda.so`: minerua finds it beside its modules and needs it for CUDA tensors only.
One file serves every Python and every torch, because it knows neither.
"""

from __future__ import annotations

import base64
import hashlib
import re
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

MOST_BYTES = {"_core": 4 << 20, "libminerua_cuda": 16 << 20}
"""What the two native files may take, unpacked: twice of what they do, so that debugging symbols are noticed."""

SHOWN = {"_core": re.compile(r"PyInit__core"), "libminerua_cuda": re.compile(r"minerua_cuda_\w+")}
"""What each may show to others."""

NEWEST = {"manylinux_2_28": {"GLIBC": (2, 28), "GLIBCXX": (3, 4, 25), "CXXABI": (1, 3, 11), "GCC": (7, 0, 0)}}
"""Tag → the newest versions of symbols that it allows (PEP 600, and the policies of auditwheel)."""

VERSION = re.compile(r"\((GLIBC|GLIBCXX|CXXABI|GCC)_([0-9.]+)\)|\s(GLIBC|GLIBCXX|CXXABI|GCC)_([0-9.]+)\s")


def main(arguments: list[str]) -> int:
    """Carries out one command; returns the exit code."""
    if len(arguments) == 2 and arguments[0] == "check":
        faults = wheel_faults(Path(arguments[1]))
        print("\n".join(faults) or f"{Path(arguments[1]).name}: nothing to object to")
        return 1 if faults else 0
    if len(arguments) == 3 and arguments[0] == "pack-cuda":
        print(pack_cuda(Path(arguments[1]), Path(arguments[2])))
        return 0
    print(__doc__, file=sys.stderr)
    return 2


# ── check ────────────────────────────────────────────────────────────────────────────────────────────────────────────


def wheel_faults(wheel: Path) -> list[str]:
    """Returns everything that is wrong with a wheel for Linux, one sentence each."""
    with tempfile.TemporaryDirectory() as folder, zipfile.ZipFile(wheel) as archive:
        native = [name for name in archive.namelist() if name.endswith(".so")]
        if not native:
            return [f"{wheel.name} holds no native file; it was built without the core"]
        paths = [Path(archive.extract(name, folder)) for name in native]
        return [f"{wheel.name}: {fault}" for path in paths for fault in file_faults(path, wheel.name)]


def file_faults(path: Path, tags: str) -> list[str]:
    """Returns everything that is wrong with one native file of a wheel with these tags."""
    kind = path.name.partition(".")[0]
    if kind not in SHOWN:
        return [f"{path.name} is not one of {', '.join(SHOWN)}"]
    strangers = [name for name in shown(path) if not SHOWN[kind].fullmatch(name)]
    faults = [f"{path.name} shows {len(strangers)} symbols too many, such as {strangers[0]}"] if strangers else []
    if path.stat().st_size > MOST_BYTES[kind]:
        faults.append(f"{path.name} has {path.stat().st_size} bytes; it may have {MOST_BYTES[kind]}")
    limits = next((limits for tag, limits in NEWEST.items() if tag in tags), {})
    for library, newest in needed(path).items():
        if library in limits and newest > limits[library]:
            found, allowed = (".".join(map(str, one)) for one in (newest, limits[library]))
            faults.append(f"{path.name} needs {library}_{found}; its tag allows {library}_{allowed}")
    return faults


def shown(path: Path) -> list[str]:
    """Returns the names of the symbols that a file shows to others."""
    listed = subprocess.run(["nm", "-D", "--defined-only", str(path)], capture_output=True, text=True, check=True)
    return [line.split()[-1] for line in listed.stdout.splitlines() if line.strip()]


def needed(path: Path) -> dict[str, tuple[int, ...]]:
    """Returns library → the newest version of its symbols that a file needs."""
    listed = subprocess.run(["objdump", "-T", str(path)], capture_output=True, text=True, check=True)
    newest: dict[str, tuple[int, ...]] = {}
    for one, two, three, four in VERSION.findall(listed.stdout):
        library, version = one or three, tuple(map(int, (two or four).split(".")))
        newest[library] = max(version, newest.get(library, (0,)))
    return newest


# ── pack ─────────────────────────────────────────────────────────────────────────────────────────────────────────────


def pack_cuda(library: Path, folder: Path) -> Path:
    """Writes the wheel with the CUDA library alone; returns its path."""
    text = (Path(__file__).resolve().parent.parent / "pyproject.toml").read_text("utf-8")
    version = re.findall(r'^version = "(.+)"$', text, re.MULTILINE)[0]
    limits = needed(library)
    tag = f"py3-none-manylinux_{'_'.join(map(str, limits['GLIBC'][:2]))}_x86_64"
    information = f"minerua_cuda-{version}.dist-info"
    files = {
        "minerua/libminerua_cuda.so": library.read_bytes(),
        f"{information}/METADATA": (
            f"Metadata-Version: 2.1\nName: minerua-cuda\nVersion: {version}\nLicense: Apache-2.0\n"
            f"Summary: The CUDA half of minerua's core\nRequires-Dist: minerua=={version}\n"
        ).encode(),
        f"{information}/WHEEL": (
            f"Wheel-Version: 1.0\nGenerator: minerua\nRoot-Is-Purelib: false\nTag: {tag}\n"
        ).encode(),
    }
    record = "".join(f"{name},sha256={digest(content)},{len(content)}\n" for name, content in files.items())
    files[f"{information}/RECORD"] = f"{record}{information}/RECORD,,\n".encode()
    folder.mkdir(parents=True, exist_ok=True)
    wheel = folder / f"minerua_cuda-{version}-{tag}.whl"
    with zipfile.ZipFile(wheel, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return wheel


def digest(content: bytes) -> str:
    """Returns a file's digest as RECORD wants it."""
    return base64.urlsafe_b64encode(hashlib.sha256(content).digest()).rstrip(b"=").decode()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
