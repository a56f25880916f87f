"""The example workflows: valid YAML, and every ditpress command in them is one that there is."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest
import yaml

from ditpress.cli import cli

CI = Path(__file__).parents[1] / "examples" / "ci"


def commands(data: object) -> list[list[str]]:
    """All ``ditpress`` commands in the strings of a workflow."""
    if isinstance(data, dict):
        return [command for value in data.values() for command in commands(value)]
    if isinstance(data, list):
        return [command for value in data for command in commands(value)]
    found = re.findall(r"^ditpress .*", data, re.MULTILINE) if isinstance(data, str) else []
    return [shlex.split(line)[1:] for line in found]


@pytest.mark.parametrize("name", ["github.yml", "gitlab.yml"])
def test_commands_of_the_workflows_parse(name: str) -> None:
    data = yaml.safe_load((CI / name).read_text(encoding="utf-8"))
    found = commands(data)
    assert [command[0] for command in found] == ["run", "check"]
    for name, *arguments in found:
        command = cli.get_command(None, name)
        assert command is not None
        context = command.make_context(name, arguments)  # a usage error where an option is unknown
        assert context.params["out"] == Path("out")


def test_the_gate_of_both_writes_what_the_system_shows() -> None:
    github = yaml.safe_load((CI / "github.yml").read_text(encoding="utf-8"))
    gate = next(step["run"] for step in github["jobs"]["gate"]["steps"] if step.get("name") == "Gate")
    assert '--markdown "$GITHUB_STEP_SUMMARY"' in gate
    job = yaml.safe_load((CI / "gitlab.yml").read_text(encoding="utf-8"))["fidelity"]
    assert f"--junit {job['artifacts']['reports']['junit']}" in job["script"][-1]
