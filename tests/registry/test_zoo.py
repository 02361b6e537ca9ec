"""A zoo of broken plugins: the host starts every time, names each culprit, and everything else works.

All animals are installed at once, as real distributions, beside a healthy plugin; minerua runs in fresh interpreters.
"""

from __future__ import annotations

import json
import os
import re
import signal
from pathlib import Path
from textwrap import dedent
from typing import Any, NamedTuple

import pytest

from ..conftest import SitePackages, run_python

VERSION = "0.3.1"
HEADER = "from minerua import LossSpec, OptimizerSpec, hookimpl\n"
HEALTHY = f"{HEADER}@hookimpl\ndef minerua_losses():\n    return [LossSpec('healthy', lambda p, t: 0.0)]\n"


class Animal(NamedTuple):
    """A plugin, and what is to be read of it: in its reason if it is quarantined, in its notices otherwise."""

    source: str
    says: str
    is_used: bool = False
    is_lethal: bool = False


def hook(body: str, before: str = "") -> str:
    """The source of a plugin with one hook; `OWN` stands for a spec with the plugin's name."""
    return f"{HEADER}{before}\n@hookimpl\ndef minerua_losses():\n" + "".join(f"    {x}\n" for x in body.splitlines())


def effect(statements: str) -> str:
    """The source of a plugin that does something to the process at import, and otherwise works."""
    return hook("return [OWN]", dedent(statements))


ANIMALS = {
    # ── that cannot be imported
    "import-error": Animal(
        "from json import nothing_of_the_kind", r"ImportError: cannot import name.*import_error\.py:1\)"
    ),
    "missing-dependency": Animal("import torch_geometric_nowhere", r"ModuleNotFoundError: No module named 'torch_geo"),
    "syntax-error": Animal("def f(:\n", r"SyntaxError: .*syntax_error\.py:1\)"),
    "indentation": Animal("def f():\npass\n", r"IndentationError: .*indentation\.py:2\)"),
    "exits": Animal("import sys\nsys.exit(3)", r"SystemExit: 3 \(.*exits\.py:2\)"),
    "base-exception": Animal(
        "class Stop(BaseException): pass\nraise Stop('now')", r"Stop: now \(.*base_exception\.py:2\)"
    ),
    "cancelled": Animal("import asyncio\nraise asyncio.CancelledError", r"CancelledError \(.*cancelled\.py:2\)"),
    "out-of-memory": Animal("raise MemoryError('no room')", r"MemoryError: no room"),
    "recursion": Animal("def f(): return f()\nf()", r"RecursionError: maximum recursion depth exceeded"),
    "import-circle": Animal(
        "import zoo_import_circle\nzoo_import_circle.nothing", r"partially initialized module 'zoo_import_circle'"
    ),
    "null-byte": Animal("x = 1\0\n", r"(SyntaxError|ValueError): source code .*null bytes"),
    # ── whose hooks are not hooks
    "misspelled": Animal(
        HEADER + "@hookimpl\ndef minerua_optimisers():\n    return []\n", r"did you mean minerua_optimizers\?"
    ),
    "wants-more": Animal(
        HEADER + "@hookimpl\ndef minerua_losses(config):\n    return []\n",
        r"signature: .*'config'.*not be found in the hookspec",
    ),
    "unmarked": Animal(
        "def minerua_losses():\n    return []\n", r"minerua_losses is not marked; write @minerua\.hookimpl"
    ),
    "not-callable": Animal(
        "minerua_losses = []\n", r"minerua_losses is a list; a hook is a function with @minerua\.hookimpl"
    ),
    "async": Animal(
        HEADER + "@hookimpl\nasync def minerua_losses():\n    return []\n", r"is async; hooks are plain functions"
    ),
    "wraps": Animal(
        HEADER + "@hookimpl(wrapper=True)\ndef minerua_losses():\n    yield\n", r"is a wrapper; a plugin provides"
    ),
    # ── whose hooks go wrong
    "raises-in-hook": Animal(hook("return 1 / 0"), r"ZeroDivisionError: division by zero \(.*raises_in_hook\.py:5\)"),
    "exits-in-hook": Animal(hook("raise SystemExit(4)"), r"SystemExit: 4 \(.*exits_in_hook\.py:5\)"),
    "recursion-in-hook": Animal(hook("return minerua_losses()"), r"RecursionError: .*recursion_in_hook\.py:5"),
    "generator": Animal(hook("yield OWN"), r"minerua_losses returned a generator; return a list of LossSpec"),
    "endless": Animal(
        hook("import itertools\nreturn itertools.repeat(OWN)"), r"returned a repeat; return a list of LossSpec"
    ),
    "nothing": Animal(hook("pass"), r"minerua_losses returned None; return a list of LossSpec"),
    "dictionary": Animal(hook("return {'own': OWN}"), r"minerua_losses returned a dict; return a list"),
    "huge": Animal(hook("return [OWN] * 2_000_000"), r"returned 2000000 specs; the most that one hook may is 10000"),
    "wrong-type": Animal(hook("return [OptimizerSpec('x', print)]"), r"expected a LossSpec, found an OptimizerSpec"),
    "strings": Animal(hook("return ['huber', 'l1']"), r"minerua_losses\[1\]: expected a LossSpec, found a str"),
    "twice-within": Animal(hook("return [OWN, OWN]"), r"minerua_losses returns the name 'twice-within' twice"),
    "half-valid": Animal(
        hook("return [OWN, LossSpec('Bad Name', None)]"), r"name 'Bad Name' is not lower-case.*not callable"
    ),
    "hostile-spec": Animal(
        hook("return [Hostile('hostile', print)]", "class Hostile(LossSpec):\n    name = property(lambda s: 1 / 0)"),
        r"ZeroDivisionError|AttributeError",
    ),
    # ── that work, and do what they should not
    "talks": Animal(
        effect("print('welcome to talks 1.0')"), r"prints while it is loaded: 'welcome to talks 1\.0'", is_used=True
    ),
    "talks-in-hook": Animal(hook("print('asked')\nreturn [OWN]"), r"prints while it is loaded: 'asked'", is_used=True),
    "slow": Animal(
        effect("import time; time.sleep(1.05)"), r"takes \d+\.\d s to load; import what is slow inside", is_used=True
    ),
    "moves": Animal(
        effect("import os; os.chdir('/')"), r"changes the working directory .*to '/'; it was put back", is_used=True
    ),
    "environment": Animal(
        effect("import os; os.environ['ZOO_KEEPER'] = 'secret'; os.environ.pop('ZOO_OTHER')"),
        r"changes the environment while it is loaded: sets ZOO_KEEPER; removes ZOO_OTHER; what was there is back",
        is_used=True,
    ),
    "new-variable": Animal(
        effect("import os; os.environ['ZOO_NEW'] = 'secret'"),
        r"the environment while it is loaded: adds ZOO_NEW; .*what is new was left$",
        is_used=True,
    ),
    "path": Animal(
        effect("import sys; sys.path.insert(0, '/zoo')"), r"changes sys\.path .*: adds '/zoo'; it was", is_used=True
    ),
    "signals": Animal(
        effect("import signal; signal.signal(signal.SIGINT, signal.SIG_IGN)"),
        r"changes handlers of signals while it is loaded: sets SIGINT; it was put back",
        is_used=True,
    ),
    "warnings": Animal(
        effect("import warnings; warnings.simplefilter('error')"),
        r"changes the filters of all warnings .*: adds .*'error'",
        is_used=True,
    ),
    "logging": Animal(
        effect("import logging; logging.basicConfig(level=10)"), r"changes the root logger while", is_used=True
    ),
    "streams": Animal(
        effect("import io, sys; sys.stdout = sys.stderr = io.StringIO()"),
        r"changes sys while .*: sets stderr, stdout",
        is_used=True,
    ),
    "closes": Animal(
        effect("import sys; sys.stdout.close()"), r"closes stdout while it is loaded; it was kept open", is_used=True
    ),
    "limits": Animal(
        effect("import sys; sys.setrecursionlimit(77777)"), r"the limit of recursion .*to 77777", is_used=True
    ),
    "collector": Animal(
        effect("import gc; gc.disable()"), r"changes the garbage collector .*from True to False", is_used=True
    ),
    "builtin": Animal(
        effect("import builtins; builtins.open = None; builtins.zoo = 1"),
        r"changes builtins while .*adds zoo; sets open",
        is_used=True,
    ),
    "replaces": Animal(
        effect("import sys, types; sys.modules['json'] = types.ModuleType('json')"),
        r"changes modules of others .*: sets json",
        is_used=True,
    ),
    "threads": Animal(
        effect("import threading; threading.Thread(target=threading.Event().wait, daemon=True).start()"),
        r"changes the threads while it is loaded: adds <Thread",
        is_used=True,
    ),
    "empty": Animal("x = 1\n", r"provides nothing: .*empty\.py has no function with @minerua\.hookimpl", is_used=True),
    "stray": Animal(
        effect("def minerua_evaluator(): return []"),
        r"minerua_evaluator \(.*stray\.py:2\) is not a hook and is never called; did",
        is_used=True,
    ),
    # ── that end the process
    "os-exit": Animal(
        "import os\nos._exit(7)", r"^ends the process with exit status 7 while it is loaded$", is_lethal=True
    ),
    "os-exit-in-hook": Animal(
        hook("import os\nos._exit(0)"), r"^ends the process with exit status 0 while", is_lethal=True
    ),
    "crashes": Animal(
        "import faulthandler, os, signal\nfaulthandler.disable()\nos.kill(os.getpid(), signal.SIGSEGV)",
        r"^ends the process by SIGSEGV while it is loaded$",
        is_lethal=True,
    ),
}
USED = [name for name, animal in ANIMALS.items() if animal.is_used]
LETHAL = [name for name, animal in ANIMALS.items() if animal.is_lethal]
BY_METADATA = {
    "missing-attribute": (
        "[minerua]\nmissing-attribute = json:no_such_thing\n",
        r"AttributeError: .*no_such_thing.*entry point missing",
    ),
    "missing-module": (
        "[minerua]\nmissing-module = nowhere.at.all\n",
        r"No module named 'nowhere'.*entry point missing-module = now",
    ),
    "entry-points.txt": ("[minerua]\nno equals sign\n", r"while reading entry_points\.txt"),
    "class": (
        "[minerua]\nclass = json:JSONDecoder\n",
        r"leads to <class '.*JSONDecoder'>; name a module, or an instance",
    ),
    "shadows": (
        "[minerua]\nshadows = json\n",
        r"provides nothing: .*json.__init__\.py has no function with @minerua\.hookimpl",
    ),
}
"""Plugins whose entry points are wrong: entry_points.txt, and what is to be read. `shadows` has a json of its own."""


def install(zoo: SitePackages, name: str, source: str, version: str = VERSION) -> None:
    """Installs `zoo-<name>`, whose one plugin `<name>` is the module `zoo_<name>`."""
    module = f"zoo_{name.replace('-', '_')}"
    zoo.write_metadata(f"zoo-{name}", f"[minerua]\n{name} = {module}\n", version=version)
    (zoo.folder / f"{module}.py").write_text(source.replace("OWN", f"LossSpec({name!r}, print)"))


def install_zoo(folder: Path) -> SitePackages:
    zoo = SitePackages(folder)
    for name, animal in ANIMALS.items():
        install(zoo, name, animal.source)
    for name, (entry_points, _) in BY_METADATA.items():
        zoo.write_metadata(f"zoo-{name}", entry_points, version=VERSION)
    (folder / "json").mkdir()  # the standard library's comes first
    (folder / "json" / "__init__.py").write_text(HEALTHY)
    install(zoo, "latin", "")
    (folder / "zoo_latin.py").write_bytes(b"name = 'M\xfcller'\n")
    install(zoo, "first", hook("return [LossSpec('contested', print), OWN]"), "1.1")
    install(zoo, "second", hook("return [LossSpec('contested', print)]"), "2.2")
    install(zoo, "healthy", HEALTHY)
    return zoo


@pytest.fixture(scope="module")
def zoo(tmp_path_factory: pytest.TempPathFactory) -> SitePackages:
    folder = tmp_path_factory.mktemp("zoo") / "site-packages"
    folder.mkdir()
    return install_zoo(folder)


def run(folder: Path, script: str, *arguments: str, **environment: str) -> Any:
    """Runs a script with a folder at the end of `sys.path`, after the standard library, as `site-packages` is."""
    variables = {"ZOO_KEEPER": "me", "ZOO_OTHER": "you", "MINERUA_PLUGINS_DISABLED": "", **environment}
    return run_python("-c", f"import sys\nsys.path.append({str(folder)!r})\n{script}", *arguments, **variables)


def minerua(zoo: SitePackages, *arguments: str, **environment: str) -> Any:
    return run(zoo.folder, "from minerua.cli import main\nmain()", *arguments, **environment)


@pytest.fixture(scope="module")
def listed(zoo: SitePackages) -> dict[str, Any]:
    """What `minerua plugins list --json` says with the whole zoo installed."""
    done = minerua(zoo, "plugins", "list", "--json")
    assert done.returncode == 0, done.stderr
    return dict(json.loads(done.stdout))


def of(listed: dict[str, Any], name: str) -> dict[str, Any]:
    (found,) = [plugin for plugin in listed["plugins"] if plugin["distribution"] == f"zoo-{name}"]
    return dict(found)


# ── each culprit is named ────────────────────────────────────────────────────────────────────────────────────────────


def test_the_zoo_is_large_enough() -> None:
    assert len(ANIMALS) + len(BY_METADATA) > 50
    assert len(USED) > 15
    assert len(LETHAL) == 3


@pytest.mark.parametrize("name", [name for name in ANIMALS if name not in USED])
def test_a_broken_plugin_is_quarantined_with_its_reason(name: str, listed: dict[str, Any]) -> None:
    plugin = of(listed, name)
    assert (plugin["status"], plugin["version"], plugin["provides"]) == ("quarantined", VERSION, {})
    assert re.search(ANIMALS[name].says, plugin["reason"]), plugin["reason"]
    assert f"plugin {name!r} (zoo-{name} {VERSION}): {plugin['reason']}" in listed["problems"]


@pytest.mark.parametrize("name", USED)
def test_a_plugin_with_bad_manners_is_used_and_told(name: str, listed: dict[str, Any]) -> None:
    plugin = of(listed, name)
    assert (plugin["status"], plugin["reason"]) == ("ok", None)
    assert plugin["provides"] == ({} if name == "empty" else {"minerua_losses": [name]})
    assert any(re.search(ANIMALS[name].says, notice) for notice in plugin["notices"]), plugin["notices"]
    assert any(notice.startswith(f"plugin {name!r} (zoo-{name} {VERSION}) ") for notice in listed["notices"])
    assert "secret" not in str(plugin["notices"])


@pytest.mark.parametrize("name", BY_METADATA)
def test_an_entry_point_that_is_wrong_is_told(name: str, listed: dict[str, Any]) -> None:
    plugin = of(listed, name)
    assert plugin["status"] == ("ok" if name == "shadows" else "quarantined")
    assert re.search(BY_METADATA[name][1], f"{plugin['reason']} {plugin['notices']}")


def test_a_source_that_is_not_utf_8_is_told(listed: dict[str, Any]) -> None:
    plugin = of(listed, "latin")
    assert plugin["status"] == "quarantined"
    assert re.search(r"SyntaxError: .*utf-8.*latin\.py", plugin["reason"]), plugin["reason"]


def test_a_name_of_two_plugins_is_told_with_both(listed: dict[str, Any]) -> None:
    assert any(
        "'contested' is provided by plugin 'first' (zoo-first 1.1) and by plugin 'second' (zoo-second 2.2)" in problem
        for problem in listed["problems"]
    )
    assert of(listed, "first")["status"] == of(listed, "second")["status"] == "ok"


def test_check_names_every_culprit_with_distribution_and_version(zoo: SitePackages, listed: dict[str, Any]) -> None:
    done = minerua(zoo, "plugins", "check")
    assert (done.returncode, done.stdout) == (2, "")
    for name in [*ANIMALS, *BY_METADATA]:
        is_told = f"(zoo-{name} {VERSION}): " in done.stderr
        assert is_told is (name not in USED and name != "shadows"), name
    assert "Traceback" not in done.stderr


# ── everything else works ────────────────────────────────────────────────────────────────────────────────────────────

HOST = """
import gc, json, logging, os, signal, threading, warnings
real = json.dumps, open
folder, path, limit = os.getcwd(), list(sys.path), sys.getrecursionlimit()
from minerua.registry import Registry
registry = Registry.load()
assert (json.dumps, open) == real and sys.modules["json"].dumps is real[0]
assert (os.getcwd(), sys.path, sys.getrecursionlimit(), gc.isenabled()) == (folder, path, limit, True)
assert (os.environ["ZOO_KEEPER"], os.environ["ZOO_OTHER"]) == ("me", "you")
assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
assert (logging.root.handlers, logging.root.level, sys.stdout, sys.stderr) == ([], 30, sys.__stdout__, sys.__stderr__)
warnings.warn("heard and not raised", stacklevel=1)
print(registry.losses["healthy"].call(1, 2), registry.losses["first"].name, sorted(registry.losses.contested))
"""


def test_the_process_of_the_host_is_as_it_was_and_everything_else_works(zoo: SitePackages) -> None:
    done = run(zoo.folder, HOST, MINERUA_PLUGINS_DISABLED=",".join(LETHAL))
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "0.0 first ['contested']"
    assert "UserWarning: heard and not raised" in done.stderr


def test_a_thread_of_a_plugin_does_not_keep_the_list_from_ending(tmp_path: Path) -> None:
    folder = SitePackages(tmp_path)
    install(folder, "holds-on", "import threading\nthreading.Thread(target=threading.Event().wait).start()\n")
    done = minerua(folder, "plugins", "list", MINERUA_PLUGINS_ALLOWED="holds-on")
    assert done.returncode == 0
    assert f"notice: plugin 'holds-on' (zoo-holds-on {VERSION}) changes the threads while it is loaded" in done.stdout


@pytest.mark.skipif(not hasattr(os, "fork"), reason="names what never returns from another process")
def test_a_plugin_that_never_returns_is_ended_and_named(tmp_path: Path) -> None:
    folder = SitePackages(tmp_path)
    install(folder, "hangs", "import time\ntime.sleep(600)\n")
    install(folder, "healthy", HEALTHY)
    script = "from minerua.registry.survey import survey\nprint(survey(patience_seconds=1.0))"
    done = run(tmp_path, script, MINERUA_PLUGINS_ALLOWED="hangs,healthy")
    assert f"plugin 'hangs' (zoo-hangs {VERSION}): does not return within 1 s while it is loaded" in done.stdout
    assert "{'minerua_losses': ('healthy',)}" in done.stdout


def test_ctrl_c_while_a_plugin_is_loaded_says_which(tmp_path: Path) -> None:
    install(SitePackages(tmp_path), "impatient", "raise KeyboardInterrupt")
    done = run(tmp_path, "from minerua.registry import Registry\nRegistry.load()", MINERUA_PLUGINS_ALLOWED="impatient")
    assert done.returncode == -signal.SIGINT
    assert f"KeyboardInterrupt: while plugin 'impatient' (zoo-impatient {VERSION}) was loaded" in done.stderr


def test_what_cannot_be_put_back_is_told(tmp_path: Path) -> None:
    folder, gone = SitePackages(tmp_path / "site-packages"), tmp_path / "gone"
    folder.folder.mkdir()
    gone.mkdir()
    install(folder, "removes", f"import os\nos.chdir('/')\nos.rmdir({str(gone)!r})\n")
    script = (
        f"import os\nos.chdir({str(gone)!r})\nfrom minerua.registry import Registry\nprint(Registry.load().notices)"
    )
    done = run(folder.folder, script, MINERUA_PLUGINS_ALLOWED="removes")
    assert "changes the working directory while it is loaded, which cannot be put back: [Errno 2]" in done.stdout
