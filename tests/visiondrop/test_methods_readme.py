"""The README's worked example of a method of one's own: short, and it runs as it stands."""

import re
from pathlib import Path

import pytest
import torch

import visiondrop
from visiondrop.methods.registry import _METHODS

README = Path(__file__).parents[2] / "README.md"
HEADING = "## Add your own method"


def example() -> str:
    """The first python block below the heading."""
    text = README.read_text() if README.exists() else ""
    if HEADING not in text:
        pytest.skip(f"README.md has no section {HEADING!r}")
    section = text.split(HEADING, 1)[1].split("\n## ")[0]
    return re.search(r"```python\n(.*?)```", section, re.S)[1]


def test_the_example_is_short():
    lines = [line for line in example().splitlines() if line.strip() and not line.strip().startswith("#")]
    assert len(lines) < 40


def test_the_example_runs(capsys):
    code, before, space = example(), set(visiondrop.available()), {"__name__": "example"}
    try:
        with torch.enable_grad():
            exec(compile(code, str(README), "exec"), space)
        (name,) = set(visiondrop.available()) - before
        assert f"method {name}" in capsys.readouterr().out
        report, plan = space["handle"].report, space["handle"].plan
        assert plan.method == name and report.tokens_per_layer[0] == plan.tokens_per_layer()
        assert abs(plan.ledger().mean - plan.tokens) <= 1
        assert len(report.stages[0].dominant[0]) == plan.counts[-1] and not space["handle"].active
    finally:
        for name in set(_METHODS) - before:
            del _METHODS[name]
