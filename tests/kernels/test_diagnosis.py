"""`diagnose` tells the truth about installations of every kind, and never raises."""

import re
from importlib import metadata

import pytest

from minerua.errors import CoreUnavailable
from minerua.kernels import compiled, cuda, diagnosis


def findings():
    return {finding.what: finding for finding in diagnosis.diagnose()}


def test_a_sound_installation_is_all_there():
    found = findings()
    assert list(found)[:4] == ["minerua", "python", "platform", "compiled core"]
    assert found["torch"].detail == metadata.version("torch")
    assert re.fullmatch(
        r".*_core.*, built with (GNU|Clang).*, (baseline|avx2|avx512) loops", found["compiled core"].detail
    )
    assert int(found["threads"].detail) >= 1
    assert {found[f"backend of {operation}"].status for operation in ("merge", "svd_mutation")} == {"ok"}
    assert "libminerua_cuda.so" in found


def test_a_missing_core_is_absent_with_its_reason(monkeypatch):
    monkeypatch.setattr(compiled, "core", None)
    monkeypatch.setattr(compiled, "absence_reason", "minerua._core cannot be imported: gone")
    finding = findings()["compiled core"]
    assert (finding.status, finding.detail) == ("absent", "minerua._core cannot be imported: gone")
    assert finding.remedy == "reinstall minerua with a C++17 compiler; until then the slow reference is used"


def test_a_missing_cuda_library_is_absent_with_its_remedy(monkeypatch, tmp_path):
    monkeypatch.setattr(cuda, "library_path", lambda: tmp_path / "libminerua_cuda.so")
    finding = findings()["libminerua_cuda.so"]
    assert finding.status == "absent"
    assert finding.detail == f"{tmp_path / 'libminerua_cuda.so'} does not exist"
    assert finding.remedy == "only needed for CUDA tensors: reinstall minerua with nvcc on PATH"


@pytest.mark.parametrize(("reason", "status"), [("will not load", "broken"), ("", "ok")])
def test_a_cuda_library_that_cannot_be_used_is_broken(monkeypatch, tmp_path, reason, status):
    path = tmp_path / "libminerua_cuda.so"
    path.touch()

    def no_driver():
        raise CoreUnavailable("the driver is too old")

    monkeypatch.setattr(cuda, "library_path", lambda: path)
    monkeypatch.setattr(cuda, "absence_reason", lambda: reason)
    monkeypatch.setattr(cuda, "device_count", no_driver)
    found = findings()
    assert found["libminerua_cuda.so"].status == status
    assert ("CUDA devices" in found) == (status == "ok")
    if status == "ok":
        assert (found["CUDA devices"].status, found["CUDA devices"].detail) == ("absent", "the driver is too old")
        assert found["CUDA devices"].remedy == "install a newer driver"


def test_a_look_that_fails_is_a_finding_and_the_others_go_on(monkeypatch):
    def faint():
        raise OSError("no such platform")

    monkeypatch.setattr(diagnosis.platform, "platform", faint)
    found = findings()
    assert (found["machine"].status, found["machine"].detail) == ("broken", "OSError: no such platform")
    assert found["machine"].remedy == "report this, with the output of the command, to the authors of minerua"
    assert found["torch"].status == "ok"


def test_a_missing_torch_is_absent(monkeypatch):
    def missing(name):
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr(metadata, "version", missing)
    assert (findings()["torch"].status, findings()["torch"].remedy) == ("absent", "pip install torch")


def test_a_wrong_environment_variable_is_a_finding(monkeypatch):
    monkeypatch.setattr("minerua.kernels._latest", {})
    monkeypatch.setenv("MINERUA_BACKEND", "fast")
    assert (findings()["backends"].status, findings()["backends"].remedy) == ("broken", "unset MINERUA_BACKEND")


def test_a_look_that_fails_becomes_a_finding(monkeypatch):
    def faint():
        raise RuntimeError("no pulse")

    monkeypatch.setattr("platform.platform", faint)
    assert findings()["machine"].detail == "RuntimeError: no pulse"
