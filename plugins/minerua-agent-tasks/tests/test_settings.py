"""Settings of run files: taken by name, refused with all faults."""

from __future__ import annotations

import json

import pytest
from minerua_agent_tasks.coding import configure_coding
from minerua_agent_tasks.verdict import Verdict, reporter

from minerua.errors import ConfigError, StorageError
from minerua.values import RunContext

ITEM = {"task_id": 2, "text": "Write add.", "test_list": ["assert add(1, 2) == 3"]}
SETTINGS = {"path": "items.jsonl", "sandbox": "weak"}


def test_the_evaluator_is_made_from_settings(tmp_path):
    (tmp_path / "items.jsonl").write_text(json.dumps(ITEM))
    settings = {
        **SETTINGS,
        "scoring": "share",
        "prompt": "{prompt} {test}|{tests}",
        "system": "Be brief.",
        "limits": {"seconds": 5},
        "paths": ["."],
        "report": "verdicts.jsonl",
    }
    spec = configure_coding(settings, RunContext(tmp_path, workers=2))
    assert spec.inputs(["2"]) == [
        [
            {"role": "system", "content": "Be brief."},
            {"role": "user", "content": "Write add. assert add(1, 2) == 3|assert add(1, 2) == 3"},
        ]
    ]
    assert spec.evaluate(lambda asked: ["def add(a, b): return a + b"], ["2"], 0) == [1.0]
    line = json.loads((tmp_path / "verdicts.jsonl").read_text())
    assert line == {"id": "2", "outcome": 1.0, "reason": "all 1 tests passed", "passed": 1, "total": 1}
    plain = configure_coding(SETTINGS, RunContext(tmp_path))
    assert plain.inputs(["2"]) == ["Write add.\nYour code should pass this test:\n\nassert add(1, 2) == 3"]
    assert plain.version != spec.version
    assert plain.version == configure_coding(SETTINGS, RunContext(tmp_path, workers=4)).version


def test_settings_are_refused_with_all_faults_at_once(tmp_path):
    settings = {
        "pth": "items.jsonl",
        "scoring": "some",
        "sandbox": "weka",
        "limits": {"second": 1, "memory_bytes": 5},
        "paths": "here",
        "prompt": "no place",
        "report": "nowhere/verdicts.jsonl",
    }
    with pytest.raises(ConfigError, match="the settings of the evaluator 'coding' cannot be used") as caught:
        configure_coding(settings, RunContext(tmp_path))
    assert caught.value.faults == (
        f"path is missing; expected a file, absolute or relative to {tmp_path}",
        "scoring is 'some'; expected one of all, share",
        "the limits of a sandbox cannot be kept as they are",
        "memory_bytes is 5; it is at least 16777216, and finite",
        f"the verdicts cannot be written to {tmp_path}/nowhere/verdicts.jsonl: No such file or directory",
        f"paths is 'here'; expected a list of paths, absolute or relative to {tmp_path}",
        "sandbox is 'weka'; expected one of namespaces, bubblewrap, weak; did you mean 'weak'?",
        "the prompt 'no place' has no {prompt} in it, where the item's own is put",
        "no setting is named 'pth'; did you mean 'path' or 'paths'? "
        "Known: limits, path, paths, prompt, report, sandbox, scoring, system",
        "no setting of limits is named 'second'; did you mean 'seconds' or 'cpu_seconds'? "
        "Known: cpu_seconds, disk_bytes, disk_files, file_bytes, memory_bytes, output_bytes, processes, seconds",
    )
    with pytest.raises(ConfigError) as caught:
        configure_coding({**SETTINGS, "path": 3}, RunContext(tmp_path))
    assert caught.value.faults == (f"path is 3; expected a file, absolute or relative to {tmp_path}",)
    with pytest.raises(ConfigError, match="cannot be read: No such file or directory"):
        configure_coding({**SETTINGS, "path": "nothing.jsonl"}, RunContext(tmp_path))


def test_verdicts_that_cannot_be_added_say_so(tmp_path):
    report = reporter(tmp_path / "verdicts.jsonl")
    (tmp_path / "verdicts.jsonl").unlink()
    (tmp_path / "verdicts.jsonl").mkdir()
    with pytest.raises(StorageError, match=r"the verdict of 7 cannot be added to .*: Is a directory"):
        report("7", Verdict(1.0, "good"))
