"""One way of writing, held by tools: ruff's checks and its formatter over everything, mypy over the rooms pyproject names."""

import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]


def tool(*command: str) -> subprocess.CompletedProcess:
    """Run a developer's tool of requirements.txt on the checkout; skip where it is not installed."""
    if importlib.util.find_spec(command[0]) is None:
        pytest.skip(f"{command[0]} is not installed; it is in requirements.txt")
    return subprocess.run([sys.executable, "-m", *command], cwd=ROOT, capture_output=True, text=True)


@pytest.mark.parametrize(
    "command",
    [("ruff", "check", "--no-cache", "."), ("ruff", "format", "--check", "--no-cache", "."), ("mypy",)],
    ids=["checks", "format", "types"],
)
def test_tools_find_nothing(command):
    ended = tool(*command)
    assert ended.returncode == 0, ended.stdout + ended.stderr


def test_a_wrong_type_would_be_seen(tmp_path):
    """The rooms are really looked into: a copy of one with a wrong return value is refused."""
    file = tmp_path / "wrong.py"
    file.write_text("from visiondrop.plans.schedule import nearest\n\n\ndef wrong() -> str:\n    return nearest(0.5)\n")
    ended = tool("mypy", str(file))
    assert ended.returncode == 1 and 'expected "str"' in ended.stdout
