"""New plugins: what is written, that nothing is overwritten, and that each kind passes its exam as it is."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from minerua import scaffold
from minerua.errors import ConfigError, StorageError
from minerua.registry import KINDS
from minerua.scaffold import KIND_NAMES, write_plugin

if sys.version_info >= (3, 11):
    import tomllib

REPOSITORY = Path(__file__).resolve().parent.parent.parent


def test_there_is_a_kind_for_every_hook():
    assert sorted(KIND_NAMES) == sorted(kind.singular.replace(" ", "-") for kind in KINDS)


@pytest.mark.skipif(sys.version_info < (3, 11), reason="reads TOML")
@pytest.mark.parametrize("kind", KIND_NAMES)
def test_a_package_has_all_that_a_repository_needs(kind, tmp_path):
    written = write_plugin("acme-new", kind, out=tmp_path / "made")
    assert written.files == (
        ".github/workflows/tests.yml",
        ".gitignore",
        "README.md",
        "acme_new.py",
        "pyproject.toml",
        "tests/test_acme_new.py",
    )
    assert written.commands == (f"cd {tmp_path / 'made'}", 'pip install -e ".[test]"', "pytest")
    assert sorted(
        p.relative_to(tmp_path / "made").as_posix() for p in (tmp_path / "made").rglob("*") if p.is_file()
    ) == list(written.files)
    project = tomllib.loads((written.folder / "pyproject.toml").read_text())["project"]
    assert project["entry-points"] == {"minerua": {"acme-new": "acme_new"}}
    texts = "".join((written.folder / file).read_text() for file in written.files)
    assert re.findall(r"\$\w+", texts) == []
    assert f"`minerua_{kind.replace('-', '_')}" in (written.folder / "README.md").read_text()


SUMMARIES = {
    "skill": "counts the words of a text",
    "optimizer": "gradient descent with a momentum",
    "loss": "the logarithm of the hyperbolic cosine of every error",
    "evaluator": "sums of two numbers",
    "model": "two layers that take eight numbers to four",
    "merge-method": "a weighted mean without outliers",
}


@pytest.mark.parametrize("kind", KIND_NAMES)
def test_the_readme_of_a_package_says_what_it_is(kind, tmp_path):
    write_plugin("acme-new", kind, out=tmp_path / "made")
    row = next(line for line in (tmp_path / "made/README.md").read_text().splitlines() if "| `acme-new` |" in line)
    assert row.endswith(f"| {SUMMARIES[kind]} |")
    assert scaffold._SUMMARIES == SUMMARIES


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """One new plugin of every kind, installed as an editable install is: on the path, with its metadata beside it."""
    folder = tmp_path_factory.mktemp("strangers")
    for kind in KIND_NAMES:
        name = f"acme-{kind}"
        write_plugin(name, kind, out=folder / name)
        metadata = folder / "site-packages" / f"{name.replace('-', '_')}-0.1.0.dist-info"
        metadata.mkdir(parents=True)
        (metadata / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 0.1.0\n")
        (metadata / "entry_points.txt").write_text(f"[minerua]\n{name} = {name.replace('-', '_')}\n")
    return folder


@pytest.mark.slow
def test_a_new_plugin_of_every_kind_passes_its_tests_unchanged(folder):
    path = [*(folder / f"acme-{kind}" for kind in KIND_NAMES), folder / "site-packages", REPOSITORY]
    path += [entry for entry in os.environ.get("PYTHONPATH", "").split(os.pathsep) if entry]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(map(str, path))}
    tests = [str(folder / f"acme-{kind}" / "tests") for kind in KIND_NAMES]
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-q",
        "-W",
        "error",
        "--import-mode=importlib",
        "-p",
        "no:cacheprovider",
        *tests,
    ]
    done = subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "skipped" not in done.stdout.splitlines()[-1]


@pytest.mark.slow
def test_a_new_plugin_installs_with_pip_and_passes_its_exam(tmp_path):
    write_plugin("acme-squares", "loss", out=tmp_path / "acme-squares")
    target = tmp_path / "site-packages"
    pip = [
        sys.executable,
        "-m",
        "pip",
        "install",
        "--quiet",
        "--no-deps",
        "--target",
        str(target),
    ]
    subprocess.run([*pip, str(tmp_path / "acme-squares")], check=True, capture_output=True, timeout=300)
    path = [str(target), str(REPOSITORY), *os.environ.get("PYTHONPATH", "").split(os.pathsep)]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, path))}
    command = [sys.executable, "-m", "minerua", "plugins", "exam", "acme-squares"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.startswith("exam of acme-squares: 13 passed")


# ── what is refused ──────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("Acme Loss", "the name 'Acme Loss' is not lower-case words joined by '-', such as 'acme-loss'"),
        ("lambda", "the name 'lambda' is a keyword of Python; add a word, such as 'lambda-plugin'"),
        ("json", "the name 'json' is that of a module that Python or minerua has; add a word of your own"),
        ("minerua", "the name 'minerua' is that of a module that Python or minerua has"),
    ],
)
def test_a_name_that_cannot_be_used_is_refused(name, text, tmp_path):
    with pytest.raises(ConfigError, match="the plugin cannot be written") as error:
        write_plugin(name, "loss", out=tmp_path / "made")
    assert text in str(error.value)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["acme-tasks", "acme"])
def test_a_name_that_is_taken_by_a_distribution_or_its_plugin_is_refused(name, site_packages, tmp_path):
    site_packages.install("Acme_Tasks", version="2.5", acme="")
    with pytest.raises(ConfigError) as error:
        write_plugin(name, "loss", out=tmp_path / "made")
    taken = f"the name '{name}' is taken by the installed distribution Acme_Tasks 2.5; choose another, or uninstall it"
    assert error.value.faults[0] == taken


def test_every_fault_is_told_at_once_and_nothing_is_overwritten(tmp_path):
    (tmp_path / "here").mkdir()
    (tmp_path / "here" / "mine.txt").write_text("mine")
    with pytest.raises(ConfigError) as error:
        write_plugin("Acme", "los", out=tmp_path / "here")
    assert len(error.value.faults) == 3
    assert "no kind of plugin is named 'los'; did you mean 'loss'" in str(error.value)
    assert f"{tmp_path / 'here'} exists; nothing is overwritten: name another folder with --out" in str(error.value)
    assert [path.name for path in (tmp_path / "here").iterdir()] == ["mine.txt"]


def test_a_folder_in_a_folder_that_is_not_there_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="does not exist; make it first, or name another with --out"):
        write_plugin("acme-new", "loss", out=tmp_path / "no" / "where")


def test_a_disk_that_refuses_leaves_nothing_behind(tmp_path, monkeypatch):
    def refuse(*_, **__):
        raise OSError("the disk is full")

    monkeypatch.setattr(Path, "write_text", refuse)
    with pytest.raises(StorageError, match="made cannot be written: the disk is full"):
        write_plugin("acme-new", "loss", out=tmp_path / "made")
    assert list(tmp_path.iterdir()) == []
    monkeypatch.setattr("tempfile.mkdtemp", refuse)
    with pytest.raises(StorageError, match="made cannot be written: the disk is full"):
        write_plugin("acme-new", "loss", out=tmp_path / "made")
