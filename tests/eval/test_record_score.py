"""Scores that servers give: recorded with the run's provenance, found by the tables, wrong input refused."""

import json

import pytest

from eval import record_score
from eval.results import rows
from figures.data import cells, settings
from tests.support.results_rows import MODEL, row, write

WAITING = {"upload": ["submissions/answers.json"], "interval_method": "none: scored by a server"}


@pytest.fixture
def folder(tmp_path):
    return made(tmp_path / "run", row("vqav2", None, "visiondrop", 64, **WAITING))


def made(folder, one):
    (folder / "submissions").mkdir(parents=True)
    (folder / "submissions" / "answers.json").write_text("[]")
    (folder / "row.json").write_text(json.dumps(one))
    return folder


def cell_of(file, method, tokens):
    variant, model = settings.variant("table1", MODEL)
    entry = next(e for e in variant.entries if (e.method, e.tokens) == (method, tokens))
    column = next(c for c in variant.columns if c.benchmark == "vqav2")
    return cells.cell(cells.load_rows([file]), variant, model, entry, column, {})


def test_a_score_joins_the_row_it_belongs_to(folder, tmp_path, capsys):
    waiting = json.loads((folder / "row.json").read_text())
    out = write(tmp_path, waiting)
    assert cell_of(out, "visiondrop", 64)["note"].startswith("scored by a server")
    assert record_score.main([str(folder), "--score", "76.8", "--server", "EvalAI 830", "--out", str(out)]) == 0
    found = rows.load(out, strict=True)[0]
    assert len(found) == 2 and found[0] == waiting
    changed = {k for k in waiting if waiting[k] != found[1][k]}
    assert changed == {"score", "metrics", "server", "interval_method", "date", "checksum"}
    assert found[1]["metrics"] == {"server_score": 76.8}
    assert cell_of(out, "visiondrop", 64)["ours"] == 76.8
    assert "76.8 by EvalAI 830" in capsys.readouterr().out


def test_a_later_score_replaces_and_the_same_is_refused(folder, tmp_path, capsys):
    out = tmp_path / "rows.jsonl"
    for score, code in (("76.8", 0), ("76.8", 2), ("77.1", 0)):
        assert record_score.main([str(folder), "--score", score, "--out", str(out)]) == code
    assert "nothing to do" in capsys.readouterr().err
    assert cell_of(out, "visiondrop", 64)["ours"] == 77.1
    assert rows.load(out)[0][0]["server"].startswith("https://eval.ai")


@pytest.mark.parametrize(
    "score, sentence",
    [("101", "0 … 100"), ("-1", "0 … 100"), ("nan", "0 … 100"), ("0.768", "give per cent, 76.8")],
)
def test_wrong_scores_are_refused(folder, tmp_path, capsys, score, sentence):
    out = tmp_path / "rows.jsonl"
    assert record_score.main([str(folder), f"--score={score}", "--out", str(out)]) == 2
    assert sentence in capsys.readouterr().err and not out.exists()


def test_wrong_runs_are_refused(tmp_path, capsys):
    def refused(folder):
        assert record_score.main([str(folder), "--score", "70", "--out", str(tmp_path / "rows.jsonl")]) == 2
        return capsys.readouterr().err

    assert "no readable row.json" in refused(tmp_path / "nowhere")
    assert "was scored here (61.0)" in refused(made(tmp_path / "a", row("gqa", 61.0)))
    assert "partial run (--limit 10)" in refused(
        made(tmp_path / "b", row("vqav2", None, partial=True, limit=10, **WAITING))
    )
    lost = made(tmp_path / "c", row("vqav2", None, **WAITING))
    (lost / "submissions" / "answers.json").unlink()
    assert "is gone" in refused(lost)
    edited = row("vqav2", None, **WAITING) | {"method": "fastv"}
    assert "not what the run wrote" in refused(made(tmp_path / "d", edited))
    assert not (tmp_path / "rows.jsonl").exists()
