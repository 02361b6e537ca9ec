"""The registry, tested on real `dist-info` folders and real modules wherever discovery matters."""

from __future__ import annotations

import doctest
import importlib
import importlib.metadata
import json
import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from minerua import (
    EvaluatorSpec,
    LossSpec,
    MergeMethodSpec,
    MergeParameter,
    ModelSpec,
    OptimizerSpec,
    Skill,
    TensorSpec,
    hookimpl,
)
from minerua.errors import DuplicateName, UnknownName
from minerua.hookspecs import hookspec
from minerua.registry import (
    ALLOWED_VARIABLE,
    DISABLED_VARIABLE,
    KINDS,
    TRACE_VARIABLE,
    Plugin,
    Registry,
    catalog,
    loading,
    specs,
)

GOOD = """
    from minerua import LossSpec, OptimizerSpec, hookimpl

    @hookimpl
    def minerua_losses():
        return [LossSpec("{name}", lambda predictions, targets: 0.0)]

    @hookimpl
    def minerua_optimizers():
        return [OptimizerSpec("{name}-descent", lambda parameters: None)]
"""
LOSS = LossSpec("huber", print)


def good(name: str) -> str:
    return GOOD.format(name=name)


def load(site_packages: Any) -> Registry:
    return Registry.load(distributions=importlib.metadata.distributions(path=[str(site_packages.folder)]))


def provider_of(hook: str, *provided: Any) -> SimpleNamespace:
    """An object whose one hook returns the given specs."""

    def implementation() -> list[Any]:
        return list(provided)

    return SimpleNamespace(**{hook: hookimpl(specname=hook)(implementation)})


def reason_of(plugin: object) -> str:
    (outcome,) = Registry.of(plugin).plugins
    assert outcome.status == "quarantined"
    assert outcome.reason is not None
    return outcome.reason


@pytest.fixture(autouse=True)
def _nothing_disabled(monkeypatch: pytest.MonkeyPatch) -> None:
    for variable in (ALLOWED_VARIABLE, DISABLED_VARIABLE, TRACE_VARIABLE):
        monkeypatch.delenv(variable, raising=False)


# ── what is well ─────────────────────────────────────────────────────────────────────────────────────────────────────


def test_an_installed_plugin_is_found_through_its_entry_point(site_packages: Any) -> None:
    site_packages.install("acme-losses", version="2.5", acme_losses=good("huber"))
    registry = load(site_packages)
    (plugin,) = registry.plugins
    assert (plugin.name, plugin.distribution, plugin.version) == ("acme-losses", "acme-losses", "2.5")
    assert (plugin.status, plugin.reason) == ("ok", None)
    assert plugin.provides == {"minerua_losses": ("huber",), "minerua_optimizers": ("huber-descent",)}
    assert 0 < plugin.load_seconds < 60
    assert registry.losses["huber"].call(1, 1) == 0.0
    assert registry.losses.provider("huber") == plugin
    assert registry.problems == ()


def test_by_default_everything_installed_is_searched(site_packages: Any) -> None:
    site_packages.install("acme-losses", acme_losses=good("acme-huber"))
    registry = Registry.load()
    assert registry.losses.provider("acme-huber").distribution == "acme-losses"


def test_another_group_is_not_looked_at(site_packages: Any) -> None:
    site_packages.install("acme-losses", acme_losses="raise RuntimeError('imported')")
    found = importlib.metadata.distributions(path=[str(site_packages.folder)])
    assert Registry.load("other", distributions=found).plugins == ()


def test_every_hook_fills_the_mapping_of_its_kind() -> None:
    provided = {
        "minerua_skills": Skill("a", print),
        "minerua_optimizers": OptimizerSpec("a", print),
        "minerua_losses": LossSpec("a", print),
        "minerua_evaluators": EvaluatorSpec("a", list, print),
        "minerua_models": ModelSpec("a", print),
        "minerua_merge_methods": MergeMethodSpec("a", print),
    }
    registry = Registry.of(*(provider_of(hook, spec) for hook, spec in provided.items()))
    assert registry.problems == ()
    assert {kind.hook: getattr(registry, kind.attribute)["a"] for kind in KINDS} == provided


def test_the_kinds_are_exactly_the_hooks() -> None:
    from minerua import hookspecs

    assert [kind.hook for kind in KINDS] == [name for name in vars(hookspecs) if name.startswith("minerua_")]
    assert all(hasattr(getattr(hookspecs, kind.hook), "minerua_spec") for kind in KINDS)


def test_the_order_of_names_does_not_depend_on_the_order_of_plugins() -> None:
    one, two = provider_of("minerua_losses", LossSpec("b", print)), provider_of("minerua_losses", LossSpec("a", print))
    assert list(Registry.of(one, two).losses) == list(Registry.of(two, one).losses) == ["a", "b"]


def test_a_catalog_is_a_read_only_mapping() -> None:
    losses = Registry.of(provider_of("minerua_losses", LOSS)).losses
    assert dict(losses) == {"huber": LOSS}
    assert ("huber" in losses, "l1" in losses, losses.get("l1", 7), len(losses)) == (True, False, 7, 1)
    assert repr(losses) == "<loss catalog: huber>"
    with pytest.raises(TypeError, match="item assignment"):
        losses["l1"] = LOSS  # type: ignore[index]


def test_a_plugin_may_implement_a_hook_twice_and_optional_hooks_of_later_versions() -> None:
    plugin = provider_of("minerua_losses", LOSS)
    plugin.more = hookimpl(specname="minerua_losses")(lambda: [LossSpec("l1", print)])
    plugin.later = hookimpl(specname="minerua_samplers", optionalhook=True)(lambda: [])
    assert list(Registry.of(plugin).losses) == ["huber", "l1"]


def test_the_plugins_that_come_with_minerua_are_well() -> None:
    project = (Path(__file__).parent.parent / "pyproject.toml").read_text("utf-8")
    entries = project.split("[project.entry-points.minerua]")[1].split("\n[")[0]
    modules = re.findall(r'^[\w-]+ = "([\w.]+)"$', entries, flags=re.MULTILINE)
    assert modules
    registry = Registry.of(*map(importlib.import_module, modules))
    assert registry.problems == ()
    assert all(plugin.provides for plugin in registry.plugins)


# ── what is quarantined ──────────────────────────────────────────────────────────────────────────────────────────────

BROKEN_IMPORTS = {
    "raises": (
        "x = 1\nraise RuntimeError('no licence\\n found')",
        r"RuntimeError: no licence found \(.*broken\.py:2\)",
    ),
    "misses a module": ("import nowhere_at_all", r"ModuleNotFoundError: No module named 'nowhere.*broken\.py:1\)"),
    "is not Python": ("x = 1\n\ndef f(:\n", r"SyntaxError: .*broken\.py:3\)"),
    "leaves the program": ("import sys\nsys.exit('bye')", r"SystemExit: bye \(.*broken\.py:2\)"),
    "fails elsewhere": ("import json\njson.loads('{')", r"decoder\.py:\d+, reached from .*broken\.py:2\)"),
    "raises an error of minerua": (
        "from minerua.errors import UnknownName\nraise UnknownName('not here', ['nor there'])",
        r"UnknownName: not here - nor there \(.*broken\.py:2\)",
    ),
    "raises without words": ("raise KeyError", r"KeyError \(.*broken\.py:1\)"),
    "raises what cannot be read": (
        "class E(Exception):\n    def __str__(self): raise self\nraise E",
        r"E: \(its text cannot be read\) \(.*broken\.py:3\)",
    ),
    "raises in a hook": (
        "from minerua import hookimpl\n@hookimpl\ndef minerua_losses():\n    return 1 / 0\n",
        r"ZeroDivisionError: division by zero \(.*broken\.py:4\)",
    ),
    "misspells a hook": (
        "from minerua import hookimpl\n\n@hookimpl\ndef minerua_looses():\n    return []\n",
        r"minerua_looses \(.*broken\.py:3\) is not a hook; did you mean minerua_losses\?",
    ),
    "invents a hook": (
        "from minerua import hookimpl\n@hookimpl\ndef zzz():\n    return []\n",
        r"zzz \(.*broken\.py:2\) is not a hook; the hooks are minerua_skills, .*minerua_merge_methods",
    ),
    "wants an argument": (
        "from minerua import hookimpl\n@hookimpl\ndef minerua_losses(register):\n    return []\n",
        r"wrong signature: .*'minerua_losses'.*minerua_losses\(register\).*'register'.*not be found in the hookspec",
    ),
    "forgets the marker": (
        "def minerua_losses():\n    return []\n",
        r"its hooks are not those of minerua.* minerua_losses is not marked; write @minerua\.hookimpl above it",
    ),
    "wraps": (
        "from minerua import hookimpl\n@hookimpl(wrapper=True)\ndef minerua_losses():\n    return (yield)\n",
        r"minerua_losses \(.*broken\.py:2\) is a wrapper",
    ),
    "is async": (
        "from minerua import hookimpl\n@hookimpl\nasync def minerua_losses():\n    return []\n",
        r"minerua_losses \(.*broken\.py:2\) is async; hooks are plain functions",
    ),
}


@pytest.mark.parametrize(("source", "reason"), BROKEN_IMPORTS.values(), ids=BROKEN_IMPORTS)
def test_a_plugin_is_quarantined_when_it(source: str, reason: str, site_packages: Any) -> None:
    site_packages.install("broken-one", version="0.3", broken=source)
    site_packages.install("acme-losses", acme_losses=good("huber"))
    registry = load(site_packages)
    acme, broken = registry.plugins
    assert (str(broken), broken.status) == ("plugin 'broken' (broken-one 0.3)", "quarantined")
    assert broken.reason is not None
    assert "\n" not in broken.reason
    assert re.search(reason, broken.reason), broken.reason
    assert broken.provides == {}
    assert acme.status == "ok"
    assert list(registry.losses) == ["huber"]
    assert registry.problems == (f"plugin 'broken' (broken-one 0.3): {broken.reason}",)


def test_ctrl_c_during_an_import_stops_the_program(site_packages: Any) -> None:
    site_packages.install("slow-one", slow="raise KeyboardInterrupt")
    with pytest.raises(KeyboardInterrupt):
        load(site_packages)


@pytest.mark.parametrize(
    ("entry", "reason"),
    [
        (
            "gone = no_such_module",
            r"ModuleNotFoundError: No module named 'no_such_module' \(entry point gone = no_such",
        ),
        ("gone = json:nothing", r"AttributeError: .*nothing.*\(entry point gone = json:nothing\)"),
        ("gone = json:JSONDecoder", r"leads to <class 'json.decoder.JSONDecoder'>; name a module, or an instance"),
        ("gone = site:ENABLE_USER_SITE.none", r"AttributeError"),
    ],
)
def test_an_entry_point_that_leads_nowhere_is_quarantined(entry: str, reason: str, site_packages: Any) -> None:
    site_packages.write_metadata("gone", f"[minerua]\n{entry}\n")
    (plugin,) = load(site_packages).plugins
    assert plugin.status == "quarantined"
    assert re.search(reason, str(plugin.reason)), plugin.reason


def test_a_malformed_distribution_is_quarantined_only_if_it_is_ours(site_packages: Any) -> None:
    site_packages.write_metadata("ours", "[minerua]\nno equals sign\n")
    site_packages.write_metadata("theirs", "[pytest11]\nno equals sign\n")
    site_packages.install("acme-losses", acme_losses=good("huber"))
    registry = load(site_packages)
    assert [(p.name, p.distribution, p.status) for p in registry.plugins] == [
        ("acme-losses", "acme-losses", "ok"),
        ("entry_points.txt", "ours", "quarantined"),
    ]
    assert "while reading entry_points.txt" in registry.problems[0]


def test_a_distribution_without_metadata_is_still_accounted_for(site_packages: Any) -> None:
    site_packages.install("acme-losses", acme_losses=good("huber"))
    (site_packages.folder / "acme_losses-1.0.dist-info" / "METADATA").unlink()
    site_packages.install("other-losses", other_losses=good("other"))
    (site_packages.folder / "other_losses-1.0.dist-info" / "METADATA").write_text("no header at all")
    assert [(p.name, p.distribution, p.version, p.status) for p in load(site_packages).plugins] == [
        ("acme-losses", "unknown", "unknown", "ok"),
        ("other-losses", "unknown", "unknown", "ok"),
    ]


def test_of_two_installations_of_one_distribution_the_first_counts(tmp_path: Path, site_packages: Any) -> None:
    site_packages.install("Acme.Losses", version="2.0", acme_losses=good("huber"))
    older = type(site_packages)(tmp_path / "older")
    older.folder.mkdir()
    older.install("acme-losses", version="1.0", acme_losses=good("huber"))
    found = importlib.metadata.distributions(path=[str(site_packages.folder), str(older.folder)])
    registry = Registry.load(distributions=found)
    assert [plugin.version for plugin in registry.plugins] == ["2.0"]
    assert registry.problems == ()


INVALID_SPECS = [
    (
        "minerua_losses",
        OptimizerSpec("sgd", print),
        "expected a LossSpec, found an OptimizerSpec; minerua_optimizers is the hook for it",
    ),
    ("minerua_losses", 7, "minerua_losses[0]: expected a LossSpec, found an int"),
    (
        "minerua_losses",
        LossSpec("Huber", print),
        "its specs are not valid: minerua_losses[0]: name 'Huber' is not lower-case words joined by '-'",
    ),
    ("minerua_losses", LossSpec("huber_loss", print), "name 'huber_loss' is not"),
    ("minerua_losses", LossSpec("huber-", print), "name 'huber-' is not"),
    ("minerua_losses", LossSpec("huber\n", print), "name 'huber\\n' is not"),
    ("minerua_losses", LossSpec("", print), "name '' is not"),
    ("minerua_losses", LossSpec(None, print), "name None is not"),  # type: ignore[arg-type]
    ("minerua_losses", LossSpec("huber", 3), "call of 'huber' is an int, not callable"),  # type: ignore[arg-type]
    ("minerua_evaluators", EvaluatorSpec("e", ["1"], print), "items of 'e' is a list, not callable"),  # type: ignore[arg-type]
    ("minerua_evaluators", EvaluatorSpec("e", list, print, inputs=3), "inputs of 'e' is an int"),  # type: ignore[arg-type]
    ("minerua_models", ModelSpec("m", print, version=""), "version of 'm' is ''; expected a text that is not empty"),
    ("minerua_models", ModelSpec("m", print, activations="x"), "activations of 'm' is a str"),  # type: ignore[arg-type]
    (
        "minerua_merge_methods",
        MergeMethodSpec("m", print, uses="gram"),
        "uses of 'm' is 'gram'; expected one of 'weights', 'grams'",
    ),  # type: ignore[arg-type]
    (
        "minerua_merge_methods",
        MergeMethodSpec("m", print, base="maybe"),  # type: ignore[arg-type]
        "base of 'm' is 'maybe'; expected one of 'required', 'optional', 'ignored'",
    ),
    (
        "minerua_merge_methods",
        MergeMethodSpec("m", print, prepare=print),
        "prepare of 'm' is given, but uses is 'weights'; only methods with 'tensors' prepare",
    ),
    ("minerua_merge_methods", MergeMethodSpec("m", print, check=3), "check of 'm' is an int, not callable"),  # type: ignore[arg-type]
    (
        "minerua_merge_methods",
        MergeMethodSpec("m", print, parameters=["weight"]),  # type: ignore[arg-type]
        "parameters of 'm' are ['weight']; expected a tuple of MergeParameter",
    ),
    (
        "minerua_merge_methods",
        MergeMethodSpec("m", print, parameters=(MergeParameter("t"), MergeParameter("t"))),
        "parameter 't' of 'm' is given twice",
    ),
    ("minerua_skills", Skill("s", print, outputs={"a": "str"}), "outputs['a'] of 's' is 'str'; expected a Python type"),  # type: ignore[dict-item]
    (
        "minerua_skills",
        Skill("s", print, inputs={"a": TensorSpec("a", (-1,), "float32")}),
        "has the shape (-1,); expected a tuple of counts and names",
    ),
    (
        "minerua_skills",
        Skill("s", print, inputs={"a": TensorSpec("a", (True, ""), "float32")}),
        "has the shape (True, '')",
    ),
    (
        "minerua_skills",
        Skill("s", print, inputs={"a": TensorSpec("a", ("batch", 3), "")}),
        "has the dtype ''; expected numpy's name of it",
    ),
]


@pytest.mark.parametrize(("hook", "spec", "reason"), INVALID_SPECS)
def test_a_spec_that_is_not_valid_quarantines_its_plugin(hook: str, spec: Any, reason: str) -> None:
    assert reason in reason_of(provider_of(hook, spec))


def test_a_valid_port_is_a_type_or_a_tensor_of_counts_and_names() -> None:
    ports: dict[str, Any] = {"text": str, "image": TensorSpec("image", ("batch", 3, 0), "float32")}
    assert Registry.of(provider_of("minerua_skills", Skill("s", print, ports, ports))).problems == ()


@pytest.mark.parametrize(
    ("returned", "reason"),
    [
        (None, "minerua_losses returned None; return a list of LossSpec, empty if there are none"),
        (LOSS, "minerua_losses returned a LossSpec; return a list of LossSpec"),
        ([LOSS, LossSpec("huber", len)], "minerua_losses returns the name 'huber' twice"),
    ],
)
def test_a_hook_must_return_a_list_of_different_names(returned: Any, reason: str) -> None:
    def implementation() -> Any:
        return returned

    assert reason in reason_of(SimpleNamespace(minerua_losses=hookimpl(implementation)))


def test_all_faults_of_a_plugin_are_told_at_once() -> None:
    reason = reason_of(provider_of("minerua_losses", LossSpec("A", print), 7, LossSpec("c", None)))  # type: ignore[arg-type]
    assert all(f"minerua_losses[{index}]" in reason for index in range(3))


def test_a_class_in_place_of_its_instance_is_explained() -> None:
    class Plugin:
        @hookimpl
        def minerua_losses(self) -> list[LossSpec]:
            return [LOSS]

    assert "name a module, or an instance of the class" in reason_of(Plugin)
    assert Registry.of(Plugin()).losses["huber"] is LOSS


def test_a_plugin_cannot_see_or_change_what_another_one_returns() -> None:
    specs = [LOSS]
    one = SimpleNamespace(minerua_losses=hookimpl(lambda: specs))
    broken = SimpleNamespace(minerua_losses=hookimpl(wrapper=True)(_clear_everything))
    registry = Registry.of(broken, one)
    assert [plugin.status for plugin in registry.plugins] == ["quarantined", "ok"]
    assert list(registry.losses) == ["huber"]


def _clear_everything() -> Any:
    (yield).clear()
    return []


def test_an_imported_hook_specification_is_not_taken_for_a_forgotten_marker() -> None:
    def specification() -> list[LossSpec]:
        return []

    assert Registry.of(SimpleNamespace(minerua_losses=hookspec(specification))).problems == ()


# ── what is asked for in vain ────────────────────────────────────────────────────────────────────────────────────────


def test_an_unknown_name_lists_the_nearest_known_ones() -> None:
    registry = Registry.of(provider_of("minerua_merge_methods", MergeMethodSpec("ties", print)))
    with pytest.raises(UnknownName) as caught:
        registry.merge_methods["tise"]
    assert str(caught.value) == "no merge method is named 'tise'; did you mean 'ties'? Known: ties"
    with pytest.raises(LookupError):
        registry.merge_methods.provider("tise")


def test_an_unknown_name_tells_which_quarantined_or_disabled_plugins_might_have_it(
    site_packages: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    site_packages.install("broken-one", version="0.3", broken="import nowhere_at_all")
    site_packages.install("quiet-one", version="0.4", quiet=good("quiet"))
    monkeypatch.setenv(DISABLED_VARIABLE, "quiet")
    with pytest.raises(UnknownName) as caught:
        load(site_packages).losses["huber"]
    message, broken, quiet = str(caught.value).splitlines()
    assert message.endswith("A plugin that is not in use may provide it; `minerua plugins check` says what to repair:")
    assert broken.startswith(
        "  - plugin 'broken' (broken-one 0.3) is quarantined: ModuleNotFoundError: No module named"
    )
    assert (
        quiet
        == f"  - plugin 'quiet' (quiet-one 0.4) is disabled: the environment variable {DISABLED_VARIABLE} is 'quiet'"
    )


def test_a_name_provided_twice_is_refused_and_everything_else_stays(site_packages: Any) -> None:
    site_packages.install("first", version="1.1", one=good("huber") + "\n    x = 1")
    site_packages.install("second", version="2.2", two=good("huber").replace("huber-descent", "other-descent"))
    registry = load(site_packages)
    sentence = (
        "the loss 'huber' is provided by plugin 'one' (first 1.1) and by plugin 'two' (second 2.2), so neither is used"
        f"; uninstall one, or set {DISABLED_VARIABLE}=two"
    )
    for ask in (registry.losses.__getitem__, registry.losses.get, registry.losses.provider):
        with pytest.raises(DuplicateName) as caught:
            ask("huber")
        assert str(caught.value) == sentence
    assert list(registry.losses) == []
    assert "huber" not in registry.losses
    assert list(registry.optimizers) == ["huber-descent", "other-descent"]
    assert [plugin.status for plugin in registry.plugins] == ["ok", "ok"]
    assert registry.problems == (sentence,)


def test_one_name_for_two_kinds_is_no_conflict() -> None:
    one, two = provider_of("minerua_losses", LOSS), provider_of("minerua_optimizers", OptimizerSpec("huber", print))
    registry = Registry.of(one, two)
    assert (registry.problems, len(registry.losses), len(registry.optimizers)) == ((), 1, 1)


def test_a_plugin_says_whose_it_is_in_one_phrase() -> None:
    assert str(Plugin("x", "acme", "1.0")) == "plugin 'x' (acme 1.0)"
    assert str(Registry.of(json).plugins[0]) == "plugin 'json' (given)"


@pytest.mark.parametrize("module", [catalog, loading, specs])
def test_the_examples_in_the_docstrings_are_right(module: Any) -> None:
    assert doctest.testmod(module).failed == 0
