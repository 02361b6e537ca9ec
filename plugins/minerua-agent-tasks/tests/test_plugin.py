"""The hooks: three families, found by their entry point, light to import, configured from a run file."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import minerua_agent_tasks.plugin as plugin
import pytest

from minerua.errors import ConfigError
from minerua.registry.specs import KINDS, spec_faults
from minerua.values import RunContext

if sys.version_info >= (3, 11):
    import tomllib

EVALUATORS = next(kind for kind in KINDS if kind.hook == "minerua_evaluators")


def family(name):
    return next(spec for spec in plugin.minerua_evaluators() if spec.name == name)


def test_the_families_are_there_and_valid():
    specs = plugin.minerua_evaluators()
    assert [spec.name for spec in specs] == ["coding", "database", "operating-system"]
    assert [spec_faults(EVALUATORS, spec) for spec in specs] == [[], [], []]


@pytest.mark.skipif(sys.version_info < (3, 11), reason="tomllib came with Python 3.11")
def test_the_entry_point_leads_to_the_hooks():
    project = tomllib.loads((Path(plugin.__file__).parent.parent / "pyproject.toml").read_text())["project"]
    assert project["entry-points"]["minerua"] == {"minerua-agent-tasks": "minerua_agent_tasks.plugin"}
    assert "sqlalchemy>=2.0" in project["optional-dependencies"]["sql"]


def test_families_are_configured_from_settings(tmp_path):
    (tmp_path / "mbpp.jsonl").write_text(json.dumps({"task_id": 2, "text": "Add.", "test_list": ["assert True"]}))
    item = {"id": "a", "prompt": "How many?", "setup": "CREATE TABLE t (x)", "answer": [0]}
    (tmp_path / "sql.jsonl").write_text(json.dumps(item))
    context = RunContext(tmp_path)
    coding = family("coding").configure({"path": "mbpp.jsonl", "sandbox": "weak"}, context)
    database = family("database").configure({"path": "sql.jsonl", "sandbox": "weak"}, context)
    assert (coding.items(), database.items()) == (["2"], ["a"])
    assert [spec_faults(EVALUATORS, spec) for spec in (coding, database)] == [[], []]
    for name in ("coding", "database", "operating-system"):
        with pytest.raises(ConfigError) as caught:
            family(name).configure({"pth": "x"}, context)
        assert "pth" in str(caught.value)


def test_importing_the_hooks_brings_neither_databases_nor_torch():
    script = (
        "import sys, minerua_agent_tasks.plugin; print(sorted({'torch', 'sqlite3', 'sqlalchemy'} & set(sys.modules)))"
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, env=environment)
    assert done.stdout == "[]\n"
