"""The worked example of docs/new_method.md: short, and it runs as it stands."""

import re
from pathlib import Path

import torch

import visiondrop
from visiondrop.methods.registry import _METHODS

PAGE = Path(__file__).parents[2] / "docs" / "new_method.md"
HEADING = "# A method of your own"


def example() -> str:
    """The first python block below the heading."""
    text = PAGE.read_text()
    section = text.split(HEADING, 1)[1].split("\n## ")[0]
    return re.search(r"```python\n(.*?)```", section, re.S)[1]


def test_the_example_is_short():
    lines = [line for line in example().splitlines() if line.strip() and not line.strip().startswith("#")]
    assert len(lines) < 40


def test_the_example_runs(capsys):
    code, before, space = example(), set(visiondrop.available()), {"__name__": "example"}
    try:
        with torch.enable_grad():
            exec(compile(code, str(PAGE), "exec"), space)
        (name,) = set(visiondrop.available()) - before
        assert f"method {name}" in capsys.readouterr().out
        report, plan = space["handle"].report, space["handle"].plan
        assert plan.method == name and report.tokens_per_layer[0] == plan.tokens_per_layer()
        assert abs(plan.ledger().mean - plan.tokens) <= 1
        assert len(report.stages[0].dominant[0]) == plan.counts[-1] and not space["handle"].active
    finally:
        for name in set(_METHODS) - before:
            del _METHODS[name]
