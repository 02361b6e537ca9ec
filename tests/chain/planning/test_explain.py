from __future__ import annotations

import json
import re

import pytest

from minerua.chain.graph import Graph
from minerua.chain.plan import ExecutionPlan
from minerua.chain.planning.explain import critical_path, explain, mermaid, plan_document
from minerua.chain.planning.optimizer import PASS, ChainOptimizer
from minerua.chain.planning.scheduling import Choices, arrange
from minerua.values import Setup

from ..naive import add, graph_of, join, wired
from .test_optimizer import estimates, known, modalities, model


@pytest.fixture(autouse=True)
def two_processors(monkeypatch: pytest.MonkeyPatch) -> None:
    """Plans depend on how many processors there are."""
    monkeypatch.setattr("minerua.chain.planning.optimizer.processors", lambda: 2)


def dressed() -> Graph:
    """A chain with something for every pass."""
    return graph_of(
        wired("see", model("vision"), {"a": "image"}),
        wired("look", model("vision"), {"a": "image"}),
        wired("read", model("language"), {"a": "text"}, when=["not hush"], constants={"b": 1}),
        wired("spare", model("spare"), {"a": "text"}),
        wired("fuse", model("fusion"), {"a": "see.y", "b": ("read.y", "look.y")}),
        outputs={"label": "fuse.y"},
    )


SECONDS = {"see": 1e-2, "look": 1e-2, "read": 2e-2, "spare": 5e-3, "fuse": 1e-3}


def planned() -> ExecutionPlan:
    graph = dressed()
    optimizer = ChainOptimizer(known(graph, SECONDS), most_threads=2, cache=True)
    lean = optimizer._lean(graph, None, None)
    key = optimizer._plan_key(lean)
    timed = {
        "apart, shared threads, parallel": 0.025,
        PASS + "as written": 0.06,
        PASS + "dead steps": 0.05,
        PASS + "equal steps": 0.04,
        PASS + "setups": 0.03,
        PASS + "places": 0.026,
    }
    for plan, seconds in timed.items():
        optimizer.profile.record_plan(key, "hush:int image:int text:int", plan, seconds)
    return optimizer.optimize(graph)


EXPLAINED = """\
chain made: 5 steps as written
  see    vision(a=image)
  look   vision(a=image)
  read   language(a=text, b: constant) if not hush
  spare  spare(a=text)
  fuse   fusion(a=see.y, b=read.y or look.y)
  → label = fuse.y

as planned: 3 steps, 3 units
  see   vision(a=image)
  read  language(a=text, b: constant) if not hush
  fuse  fusion(a=see.y, b=read.y or see.y)
  → label = fuse.y

passes
  dead steps: gain predicted 0 µs, measured 10 ms
    step 'spare' is left out: no requested output needs it
  equal steps: gain predicted 10.1 ms, measured 10 ms
    step 'look' is the same as 'see' and takes its results
  joined neighbours: nothing to do
  setups: gain predicted 0 µs, measured 10 ms
    step 'see' is loaded with shared threads
    step 'read' is loaded with shared threads
    step 'fuse' is loaded with shared threads
  places: gain predicted 60 µs, measured 4 ms
    step 'fuse' runs where the caller is instead of in a thread
    what lies on the critical path starts first: read → fuse
  fusion: nothing to do
  cache: gain predicted unknown, measured unknown
    results of step 'fuse' are kept by their inputs: it costs more than a look-up
    results of step 'read' are kept by their inputs: it costs more than a look-up
    results of step 'see' are kept by their inputs: it costs more than a look-up
  loading order: gain predicted unknown, measured unknown
    models are loaded in the order in which they are needed: language, vision, fusion

units, the most urgent first
  read: thread, 21 ms to the end
    read: 20 ms; in a thread, beside the other branches; shared threads: fastest of the plans that were timed
  see: thread, 11 ms to the end
    see: 10 ms; in a thread, beside the other branches; shared threads: fastest of the plans that were timed
  fuse: caller, 1 ms to the end
    fuse: 1 ms; where the caller is: nothing could run beside it; shared threads: fastest of the plans that were timed

critical path: read → fuse, 21 ms

a run takes 25 ms

cached: see, read, fuse

loaded, in this order: language (shared threads), vision (shared threads), fusion (shared threads)"""

DRAWN = """\
flowchart LR
  subgraph before["as written"]
    before_in0(["image"])
    before_in1(["text"])
    before_in2(["hush"])
    before0["see<br/>vision"]
    before1["look<br/>vision"]
    before2["read<br/>language"]:::critical
    before3["spare<br/>spare"]
    before4["fuse<br/>fusion"]:::critical
    before_in0 --> before0
    before_in0 --> before1
    before_in1 --> before2
    before_in2 -. "if not hush" .-> before2
    before_in1 --> before3
    before0 --> before4
    before2 --> before4
    before1 --> before4
    before_out0(["label"])
    before4 --> before_out0
  end
  subgraph after["as planned"]
    after_in0(["image"])
    after_in1(["text"])
    after_in2(["hush"])
    after0["see<br/>vision<br/>thread, 10 ms"]
    after1["read<br/>language<br/>thread, 20 ms"]:::critical
    after2["fuse<br/>fusion<br/>caller, 1 ms"]:::critical
    after_in0 --> after0
    after_in1 --> after1
    after_in2 -. "if not hush" .-> after1
    after0 --> after2
    after1 --> after2
    after_out0(["label"])
    after2 --> after_out0
  end
  classDef critical stroke-width:3px,stroke:#c00"""


def test_a_plan_is_told_as_text() -> None:
    assert explain(planned()) == EXPLAINED
    assert explain(planned()) == explain(planned())


def test_a_plan_is_drawn_before_and_after_with_its_critical_path() -> None:
    assert mermaid(planned()) == DRAWN


def test_what_was_not_measured_is_told_as_such() -> None:
    text = explain(ChainOptimizer().optimize(modalities(join=join)))
    assert "  see+read+fuse: not measured; where the caller is: nothing could run beside it" in text
    assert "critical path: see+read+fuse, every step counted alike: not measured" in text
    assert "a run takes an unknown time: not measured" in text


def test_a_plan_that_no_optimizer_made_is_told_as_well() -> None:
    plan = ExecutionPlan.plain(graph_of(wired("a", add(), {"a": "x"}), outputs={"y": "a.y"}))
    assert "  a: not measured; as the chain is written" in explain(plan)
    assert "as planned: 1 step, 1 unit" in explain(plan)


def test_a_setup_that_no_reason_names_is_told() -> None:
    plan = arrange(modalities(), Choices({"see": Setup(threads=1)}), estimates({}))
    assert "in a thread, because the chain branches; not measured; 1 thread" in explain(plan)


def test_what_is_batched_is_told() -> None:
    text = explain(ChainOptimizer(concurrency=4).optimize(modalities(batchable=True)))
    assert "made one for concurrent runs: see (up to 32 rows), read (up to 32 rows), fuse (up to 32 rows)" in text


def test_the_critical_path_is_the_longest_by_what_was_measured() -> None:
    assert critical_path(arrange(modalities(), Choices(), estimates({"see": 3.0, "read": 1.0, "fuse": 1.0}))) == (
        "see",
        "fuse",
    )
    assert critical_path(arrange(modalities(), Choices(), estimates({"read": 1.0}))) == ("see", "fuse")


def test_programs_get_the_same_as_json() -> None:
    document = json.loads(json.dumps(plan_document(planned())))
    assert document["chain"] == "made"
    assert [step["name"] for step in document["after"]["steps"]] == ["see", "read", "fuse"]
    assert document["after"]["steps"][1]["when"] == ["not hush"]
    assert document["critical_path"] == ["read", "fuse"]
    assert document["expected_seconds"] == 0.025
    dead = document["passes"][0]
    assert (dead["name"], dead["measured_seconds"]) == ("dead steps", pytest.approx(0.01))
    assert [unit["place"] for unit in document["units"]] == ["thread", "thread", "caller"]
    assert document["units"][1]["steps"][0]["parts"] == ["see", "look"]
    assert document["loading_order"][0]["skill"] == "language"


def test_no_name_can_break_a_drawing() -> None:
    skill = add('x"]; click <b>')
    text = mermaid(ExecutionPlan.plain(graph_of(wired("a", skill, {"a": "x"}), outputs={"y": "a.y"})))
    assert "addx&quot;]; click &lt;b&gt;" in text
    assert all(re.fullmatch(r'[^"]*("[^"<>]*(<br/>[^"<>]*)*")?[^"]*', line) for line in text.splitlines())
