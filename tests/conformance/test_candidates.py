"""Installed plugins in the exam: what loading them does to a fresh interpreter is found, whatever it is."""

from __future__ import annotations

from textwrap import dedent

import pytest

from minerua.conformance import candidates, examine
from minerua.conformance.report import NotJudged
from minerua.conformance.subject import within

GOOD = """
    from minerua import LossSpec, hookimpl

    @hookimpl
    def minerua_losses():
        return [LossSpec("{name}", lambda predictions, targets: (predictions - targets).square().mean())]
"""


def found(name, check):
    return [problem.found for problem in examine(name, only=f"plugin/*/{check}").problems]


EFFECTS = """
    import gc, locale, logging, os, random, signal, sys, threading, warnings
    import numpy
    os.chdir("/")
    os.environ["ACME"] = "1"
    sys.path.append("/nowhere")
    sys.excepthook = print
    sys.setrecursionlimit(1234)
    warnings.simplefilter("ignore")
    logging.basicConfig()
    random.seed(0)
    numpy.random.seed(0)
    numpy.seterr(all="ignore")
    signal.signal(signal.SIGTERM, lambda *_: None)
    threading.Thread(target=threading.Event().wait, daemon=True).start()
    gc.disable()
"""
CHANGED = [
    "the working directory",
    "the environment variables",
    "sys.path",
    "sys.excepthook",
    "the recursion limit",
    "the filters of warnings",
    "the root logger",
    "the random state of Python",
    "the random state of numpy",
    "how numpy reports overflow",
    "the handlers of signals",
    "the number of threads",
    "the garbage collector",
]


def test_a_plugin_that_keeps_the_laws_passes(site_packages):
    site_packages.install("acme-loss", acme=GOOD.format(name="acme-squares"))
    report = examine("acme-loss", only="plugin/*")
    assert not report.problems, str(report)
    assert [verdict.check for verdict in report.of("passed")] == [
        "loads",
        "import-effects",
        "import-light",
        "names",
        "provides",
    ]


def test_everything_that_loading_changes_is_named(site_packages):
    site_packages.install("acme-loss", acme=GOOD.format(name="acme-squares"))
    (site_packages.folder / "acme_effects.py").write_text("")
    site_packages.install("acme-effects", acme_effects=EFFECTS + GOOD.format(name="acme-other"))
    told = candidates._in_fresh_interpreter("acme-effects", "acme_effects", "acme-effects")
    assert told["changed"] == CHANGED


TORCH = """
    state = {"dtype": "float32", "threads": 1, "grad": True, "deterministic": False}

    class State(list):
        def tolist(self):
            return list(self)

    get_default_dtype = lambda: state["dtype"]
    get_num_threads = lambda: state["threads"]
    get_rng_state = lambda: State([state.get("seed")])
    is_grad_enabled = lambda: state["grad"]
    are_deterministic_algorithms_enabled = lambda: state["deterministic"]
"""
"""What the probe asks of torch, without the seconds that torch takes."""


def test_what_loading_changes_in_torch_is_named_and_torch_is_heavy(site_packages):
    (site_packages.folder / "torch.py").write_text(dedent(TORCH))
    source = """
    import torch
    torch.state.update(dtype="float64", threads=2, seed=1, grad=False, deterministic=True)
    """
    site_packages.install("acme-torch", acme_torch=source + GOOD.format(name="acme-squares"))
    entry = candidates._Entry("acme-torch", "acme_torch", "acme-torch", "1.0")
    told = candidates.Candidate("acme-torch", entry=entry).probed()
    assert told["heavy"] == ["torch"]
    assert sorted(told["changed"]) == [
        "torch's default dtype",
        "torch's deterministic mode",
        "torch's gradient mode",
        "torch's number of threads",
        "torch's random state",
    ]


def test_printing_writing_and_heavy_imports_are_told(site_packages, tmp_path):
    (site_packages.folder / "pandas.py").write_text("")
    source = f"""
    import pandas
    print("good morning")
    open({str(tmp_path / "left.txt")!r}, "w").close()
    """
    site_packages.install("acme-loud", acme_loud=source + GOOD.format(name="acme-squares"))
    report = examine("acme-loud", only="plugin/*/import-*")
    told = [problem.found for problem in report.problems]
    assert told[0].startswith("loading it did this outside: open ")
    assert told[1:] == ["loading it printed 'good morning'", "loading it imported pandas"]


def test_a_slow_import_is_told(site_packages, monkeypatch):
    monkeypatch.setattr(candidates, "_MOST_SECONDS", 0.0)
    site_packages.install("acme-slow", acme_slow=GOOD.format(name="acme-squares"))
    (one,) = found("acme-slow", "import-light")
    assert one.startswith("loading it took 0.")
    assert one.endswith(" s of the processor; 0 s are allowed")


@pytest.mark.parametrize(
    ("source", "text"),
    [
        ("import nowhere_at_all", "ModuleNotFoundError: No module named 'nowhere_at_all'"),
        ("raise SystemExit(3)", "SystemExit: 3"),
        ("import os; os._exit(7)", "the interpreter left with 7 before all was loaded: "),
        (
            "from minerua import hookimpl\n@hookimpl\ndef minerua_losses():\n    return 3",
            "minerua_losses returned an int",
        ),
    ],
)
def test_what_does_not_load_is_told_with_its_reason(source, text, site_packages, monkeypatch):
    monkeypatch.setattr(candidates, "_candidate", lambda entry: candidates.Candidate(entry.name, entry=entry))
    site_packages.install("acme-broken", acme_broken=source)
    (one,) = found("acme-broken", "loads")
    assert text in one
    for check in ("import-effects", "import-light") if "interpreter" in text else ():
        (verdict,) = examine("acme-broken", only=f"plugin/*/{check}").of("not judged")
        assert verdict.reason == "it does not load"


def test_an_import_that_raises_in_this_process_is_told_and_ends_nothing(site_packages):
    site_packages.install("acme-broken", acme_broken="raise SystemExit(3)")
    report = examine("acme-broken")
    assert [problem.check for problem in report.problems] == ["loads", "provides"]
    assert report.problems[0].found == "SystemExit: 3"


def test_an_import_that_hangs_is_given_up(site_packages, monkeypatch):
    monkeypatch.setattr(candidates, "_PATIENCE_SECONDS", 0.3)
    site_packages.install("acme-hangs", acme_hangs="import time; time.sleep(30)")
    answer = candidates._in_fresh_interpreter("acme-hangs", "acme_hangs", "acme-hangs")
    assert answer == {"died": "the interpreter was still at it after 0.3 s"}


def test_a_module_is_loaded_in_a_fresh_interpreter_by_its_name(site_packages):
    import importlib

    (site_packages.folder / "acme_module.py").write_text(
        'import sys\nsys.setrecursionlimit(1234)\nprint("hello")\nfrom minerua import hookimpl\n'
    )
    module = importlib.import_module("acme_module")
    report = examine(module, only="plugin/*/import-effects")
    assert [problem.found for problem in report.problems] == [
        "loading it changed the recursion limit",
        "loading it printed 'hello'",
    ]


def test_a_name_that_two_plugins_provide_is_told(site_packages):
    site_packages.install("first", one=GOOD.format(name="squares"))
    site_packages.install("second", two=GOOD.format(name="squares"))
    (one,) = found("first", "names")
    assert one.startswith("the loss 'squares' is provided by plugin 'one' (first 1.0) and by plugin 'two' (second 1.0)")


def test_a_call_that_raises_raises_where_it_is_waited_for():
    assert within(5.0, lambda: 3) == 3
    assert within(0.01, lambda: __import__("time").sleep(0.5)) == NotJudged("a call did not end within 0.01 s")
    with pytest.raises(ZeroDivisionError):
        within(5.0, lambda: 1 / 0)
