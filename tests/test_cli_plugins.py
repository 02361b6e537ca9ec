"""The command line as its users meet it: a process of its own, its exit code, its two outputs, its time."""

from __future__ import annotations

import json
import resource
from typing import Any

import pytest

from minerua.errors import MineruaError
from minerua.registry import Registry

GOOD = """
    from minerua import LossSpec, hookimpl

    print("a plugin that talks while it is imported")

    @hookimpl
    def minerua_losses():
        return [LossSpec("tukey", print)]
"""
BUDGET_SECONDS = 0.4
HEAVY = ("torch", "numpy")


@pytest.fixture
def minerua(run_python: Any, site_packages: Any) -> Any:
    """Runs `minerua` with arguments, with the plugins of `site_packages` installed."""

    def run(*arguments: str, **environment: str) -> Any:
        environment.setdefault("MINERUA_PLUGINS_DISABLED", "")
        return run_python("-m", "minerua", *arguments, path=site_packages.folder, **environment)

    return run


def test_the_list_has_a_row_per_plugin(minerua: Any, site_packages: Any) -> None:
    site_packages.install("acme-losses", version="2.5", acme_losses=GOOD)
    site_packages.install("broken-one", version="0.3", broken="import nowhere_at_all")
    done = minerua("plugins", "list")
    assert (done.returncode, done.stderr) == (0, "a plugin that talks while it is imported\n")
    header, *rows = done.stdout.splitlines()
    assert header.split() == ["PLUGIN", "DISTRIBUTION", "VERSION", "STATUS", "LOAD", "PROVIDES"]
    row = {words[0]: words for words in map(str.split, rows) if words}
    assert row["acme-losses"][1:4] == ["acme-losses", "2.5", "ok"]
    assert row["acme-losses"][5:] == ["ms", "losses:", "tukey"]
    assert row["broken"][1:4] == ["broken-one", "0.3", "quarantined"]
    assert (
        "problem: plugin 'broken' (broken-one 0.3): ModuleNotFoundError: No module named 'nowhere_at_all'"
        in done.stdout
    )


def test_the_list_is_json_for_programs_even_if_a_plugin_prints(minerua: Any, site_packages: Any) -> None:
    site_packages.install("acme-losses", version="2.5", acme_losses=GOOD)
    site_packages.install("quiet-one", quiet=GOOD)
    done = minerua("plugins", "list", "--json", MINERUA_PLUGINS_DISABLED="quiet")
    found = {plugin["name"]: plugin for plugin in json.loads(done.stdout)["plugins"]}
    assert found["acme-losses"].pop("load_seconds") > 0
    assert found["acme-losses"] == {
        "name": "acme-losses",
        "distribution": "acme-losses",
        "version": "2.5",
        "status": "ok",
        "reason": None,
        "provides": {"minerua_losses": ["tukey"]},
        "notices": ["prints while it is loaded: 'a plugin that talks while it is imported'"],
    }
    assert found["quiet"]["status"] == "disabled"
    assert json.loads(done.stdout)["problems"] == []


def test_check_passes_when_all_is_well(minerua: Any, site_packages: Any) -> None:
    others = [plugin.name for plugin in Registry.load().plugins]
    site_packages.install("acme-losses", acme_losses=GOOD)
    site_packages.install("other", other=GOOD)
    done = minerua("plugins", "check", MINERUA_PLUGINS_DISABLED=",".join(["other", *others]))
    assert done.returncode == 0
    assert done.stdout.startswith("no problem: 1 plugins in use, ")


def test_check_fails_with_every_problem(minerua: Any, site_packages: Any) -> None:
    site_packages.install("first", version="1.1", one=GOOD)
    site_packages.install("second", version="2.2", two=GOOD)
    site_packages.install("broken-one", version="0.3", broken="import nowhere_at_all")
    site_packages.install("exiting-one", version="0.4", exiting="raise SystemExit(0)")
    done = minerua("plugins", "check")
    assert (done.returncode, done.stdout) == (2, "")
    message = [line for line in done.stderr.splitlines() if "talks" not in line]
    assert message[0] == "minerua: problems with plugins: 3"
    assert message[1].startswith("  - plugin 'broken' (broken-one 0.3): ModuleNotFoundError")
    assert message[2].startswith("  - plugin 'exiting' (exiting-one 0.4): SystemExit: 0")
    assert message[3].startswith(
        "  - the loss 'tukey' is provided by plugin 'one' (first 1.1) and by plugin 'two' (second 2.2)"
    )
    assert len(message) == 4


def test_ctrl_c_leaves_with_130_and_no_traceback(minerua: Any, site_packages: Any) -> None:
    site_packages.install("slow-one", slow="raise KeyboardInterrupt")
    done = minerua("plugins", "list")
    assert (done.returncode, done.stdout) == (130, "")
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("arguments", [("plugins", "lst"), ("nonsense",), ("plugins", "list", "--jsn")])
def test_a_wrong_command_line_leaves_with_2_and_names_the_mistake(arguments: tuple[str, ...], minerua: Any) -> None:
    done = minerua(*arguments)
    assert (done.returncode, done.stdout) == (2, "")
    assert arguments[-1] in done.stderr
    assert "Traceback" not in done.stderr


def test_a_user_mistake_is_one_message_and_exit_code_2(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from minerua import cli

    def raise_mistake() -> None:
        raise MineruaError("two things are wrong", ["the first", "the second"])

    monkeypatch.setattr(cli, "app", raise_mistake)
    monkeypatch.setattr(cli, "_start_swiftly", lambda: None)  # it is for a process of its own
    monkeypatch.setattr(cli.gc, "freeze", lambda: None)
    with pytest.raises(SystemExit) as left:
        cli.main()
    assert left.value.code == 2
    assert capsys.readouterr().err == "minerua: two things are wrong\n  - the first\n  - the second\n"


SETTINGS = "import gc, os; settings = lambda: (gc.get_threshold(), gc.get_freeze_count(), dict(os.environ))\n"


def test_what_the_command_line_sets_for_its_process_no_import_sets(run_python: Any) -> None:
    script = f"{SETTINGS}before = settings()\nimport minerua.cli\nprint(settings() == before)"
    assert run_python("-c", script).stdout == "True\n"


@pytest.mark.parametrize(("environment", "found"), [({}, "4"), ({"OPENBLAS_THREAD_TIMEOUT": "20"}, "20")])
def test_threads_of_openblas_sleep_soon_unless_the_user_says_otherwise(
    run_python: Any, monkeypatch: pytest.MonkeyPatch, environment: dict[str, str], found: str
) -> None:
    monkeypatch.delenv("OPENBLAS_THREAD_TIMEOUT", raising=False)
    script = "import os\nfrom minerua import cli\ncli.app = lambda: print(os.environ['OPENBLAS_THREAD_TIMEOUT'])\n"
    assert run_python("-c", f"{script}cli.main()", **environment).stdout == f"{found}\n"


def test_a_defect_of_minerua_keeps_its_traceback(run_python: Any) -> None:
    broken = "from minerua.cli import installation, main; installation._survey = lambda: 1 / 0; main()"
    done = run_python("-c", broken, "plugins", "check")
    assert done.returncode == 1
    assert "ZeroDivisionError: division by zero" in done.stderr


def test_the_version_is_the_package_version(minerua: Any) -> None:
    from minerua import __version__

    assert minerua("--version").stdout == f"minerua {__version__}\n"


def test_without_a_command_the_help_is_shown(minerua: Any) -> None:
    assert "Usage:" in minerua().stdout + minerua().stderr


DIAGNOSIS = """
from dataclasses import dataclass
import sys, types
@dataclass(frozen=True)
class Finding:
    what: str; status: str; detail: str; remedy: str
module = types.ModuleType("minerua.kernels.diagnosis")
core, torch = Finding("core", "missing", "not compiled", "install a wheel"), Finding("torch", "ok", "2.13", "")
module.diagnose = lambda: [core, torch]
sys.modules["minerua.kernels.diagnosis"] = module
from minerua.cli import main
main()
"""


def test_the_doctor_tells_findings_remedies_and_plugins(run_python: Any, site_packages: Any) -> None:
    site_packages.install("broken-one", version="0.3", broken="import nowhere_at_all")
    text = run_python("-c", DIAGNOSIS, "doctor", path=site_packages.folder)
    assert text.returncode == 0, text.stderr
    lines = text.stdout.splitlines()
    assert lines[:3] == [
        "missing      core: not compiled",
        "             → install a wheel",
        "ok           torch: 2.13",
    ]
    assert any(line.startswith("quarantined  plugin 'broken' (broken-one 0.3): ModuleNotFoundError") for line in lines)
    found = json.loads(run_python("-c", DIAGNOSIS, "doctor", "--json", path=site_packages.folder).stdout)
    assert found["findings"][0] == {
        "what": "core",
        "status": "missing",
        "detail": "not compiled",
        "remedy": "install a wheel",
    }
    assert any("broken-one 0.3" in problem for problem in found["problems"])


def test_the_doctor_examines_this_machine(minerua: Any) -> None:
    done = minerua("doctor", "--json")
    assert done.returncode == 0, done.stderr
    assert all(finding["what"] and finding["status"] for finding in json.loads(done.stdout)["findings"])


# ── speed ────────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    "arguments", [("--help",), ("plugins", "list"), ("plugins", "check"), ("plugins", "list", "--json")]
)
def test_the_light_commands_import_nothing_heavy(arguments: tuple[str, ...], run_python: Any) -> None:
    script = (
        "import atexit, os, sys\n"
        "del os.fork\n"  # so that plugins are loaded here, and not where nobody looks
        f"atexit.register(lambda: print([name for name in {HEAVY} if name in sys.modules], file=sys.stderr))\n"
        "from minerua.cli import main\n"
        "main()"
    )
    done = run_python("-c", script, *arguments, MINERUA_PLUGINS_DISABLED="all")
    assert done.returncode == 0, done.stderr
    assert done.stderr == "[]\n"


@pytest.mark.parametrize("arguments", [("--help",), ("plugins", "list"), ("plugins", "check")])
def test_the_light_commands_answer_within_the_budget(
    arguments: tuple[str, ...], minerua: Any, hold_to_budget: Any
) -> None:
    """Processor time of the whole process: these commands wait for nothing, so that it is their wall time when idle."""

    def seconds() -> float:
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        assert minerua(*arguments, MINERUA_PLUGINS_DISABLED="all").returncode == 0
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        return after.ru_utime - before.ru_utime + after.ru_stime - before.ru_stime

    hold_to_budget(seconds, BUDGET_SECONDS)
