"""docs/tour.ipynb runs from top to bottom and prints what is committed."""

import ast
import contextlib
import io
import json
from pathlib import Path

import pytest

from visiondrop.methods import registry

ROOT = Path(__file__).resolve().parents[1]


def test_the_tour_prints_what_is_committed(monkeypatch):
    pytest.importorskip("pyarrow", reason="the quick set's module needs the evaluation's environment")
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr(registry, "_METHODS", dict(registry._METHODS))  # the tour registers a method of its own
    cells = [c for c in json.loads((ROOT / "docs/tour.ipynb").read_text())["cells"] if c["cell_type"] == "code"]
    assert len(cells) == 7 and all(c["outputs"] for c in cells)
    names: dict = {"__name__": "tour"}
    for cell in cells:
        tree, shown = ast.parse("".join(cell["source"])), None
        if isinstance(tree.body[-1], ast.Expr) and any(o["output_type"] == "execute_result" for o in cell["outputs"]):
            shown = ast.Expression(tree.body.pop().value)
        out = io.StringIO()
        with contextlib.redirect_stdout(out):
            exec(compile(tree, "tour", "exec"), names)
        said = [o["text"] for o in cell["outputs"] if o["output_type"] == "stream"]
        assert out.getvalue() == "".join(said[0])
        if shown is not None:
            picture = eval(compile(shown, "tour", "eval"), names)
            (committed,) = [o["data"]["text/plain"] for o in cell["outputs"] if o["output_type"] == "execute_result"]
            assert committed == [f"<PIL.Image.Image size={picture.width}x{picture.height}>"]
