"""eval.compare: McNemar and the paired bootstrap against plain loops, refusals, the command line on made-up runs."""

import itertools
import json
import math

import numpy as np
import pytest

from eval import benchmarks, compare
from eval.errors import EvaluationError
from tests.support.results_rows import row


def run(folder, answers, method="visiondrop", benchmark="gqa", images=4, **changes):
    """A finished run with right and wrong answers, `images` pictures in turn."""
    folder.mkdir()
    made = row(benchmark, 50.0, method, 64, protocol="offline", **changes)
    (folder / "row.json").write_text(json.dumps(made))
    with open(folder / "samples.jsonl", "w") as stream:
        for i, right in enumerate(answers):
            doc = {"imageId": f"image{i % images}", "image_id": f"image{i % images}"}
            kinds = {"exact_match": float(right), "even" if i % 2 == 0 else "odd": float(right)}
            line = {"doc_id": i, "target": "x", "doc": doc, "prompt": "?", "answer": "x", "metrics": kinds}
            stream.write(json.dumps(line) + "\n")
    return folder


@pytest.fixture
def pair(tmp_path):
    rng = np.random.default_rng(0)
    a, b = rng.random(400) < 0.8, rng.random(400) < 0.6
    return run(tmp_path / "a", a, images=57), run(tmp_path / "b", b, "fastv", images=57), a, b


def test_mcnemar_equals_the_sum_over_all_coin_tosses():
    for only_a, only_b in ((0, 0), (1, 0), (5, 2), (9, 9), (0, 12)):
        n = only_a + only_b
        as_extreme = sum(abs(sum(toss) - n / 2) >= abs(only_a - n / 2) for toss in itertools.product((0, 1), repeat=n))
        assert compare.mcnemar(only_a, only_b) == pytest.approx(as_extreme / 2**n)


def test_mcnemar_of_many_questions_does_not_overflow():
    exact = 2 * sum(math.comb(1200, i) for i in range(551)) / 2**1200
    assert compare.mcnemar(550, 650) == pytest.approx(exact, rel=1e-9)
    assert compare.mcnemar(3000, 7000) < 1e-300 or compare.mcnemar(3000, 7000) == 0


def test_difference_and_interval_equal_a_plain_loop(pair):
    folder_a, folder_b, a, b = pair
    found = compare.compare(folder_a, folder_b)
    assert found["difference"] == pytest.approx(100 * (a.mean() - b.mean()))
    assert (found["only_a"], found["only_b"]) == ((a & ~b).sum(), (b & ~a).sum())
    rng, image = np.random.default_rng(1), np.arange(400) % 57
    drawn = []
    for _ in range(4000):
        picked = np.concatenate([np.flatnonzero(image == i) for i in rng.integers(0, 57, 57)])
        drawn.append(100 * (a[picked].mean() - b[picked].mean()))
    assert found["interval"] == pytest.approx(np.percentile(drawn, [2.5, 97.5]), abs=0.6)


def test_pairing_matters(tmp_path):
    """Two runs that fail on the same pictures differ by less than their own intervals suggest."""
    rng = np.random.default_rng(3)
    hard = rng.random(40) < 0.5
    a = np.array([not hard[i % 40] for i in range(400)])
    b = a.copy()
    b[:12] = False
    found = compare.compare(run(tmp_path / "a", a, images=40), run(tmp_path / "b", b, images=40))
    low, high = found["interval"]
    assert high - low < 5 < 20  # each run alone: +- 15 points


def test_one_metric_at_a_time(pair):
    folder_a, folder_b, a, b = pair
    found = compare.compare(folder_a, folder_b, "odd")
    assert found["n"] == 200 and found["difference"] == pytest.approx(100 * (a[1::2].mean() - b[1::2].mean()))
    with pytest.raises(EvaluationError, match="even, exact_match, odd"):
        compare.compare(folder_a, folder_b, "hop2")


@pytest.mark.parametrize("changes", [{"questions": "other"}, {"split": "other"}])
def test_unequal_questions_are_refused(tmp_path, changes):
    folders = run(tmp_path / "a", [1, 0]), run(tmp_path / "b", [1, 0], **changes)
    with pytest.raises(EvaluationError, match="cannot be paired"):
        compare.compare(*folders)


def test_graded_answers_have_no_mcnemar(tmp_path):
    found = compare.compare(*(run(tmp_path / n, [0.3, 1, 0.6], benchmark="vqav2") for n in "ab"))
    assert "p" not in found and "graded" in compare.report(found)


def test_pope_and_mme_answers_are_right_or_wrong():
    pope = benchmarks.get("pope", "offline")
    said = [
        {"doc_id": i, "pope_f1_score": {"prediction": p, "ground_truth": "yes"}} for i, p in enumerate(("yes", "no"))
    ]
    assert compare.right_answers(pope, said) == {0: True, 1: False}
    mme = benchmarks.get("mme", "offline")
    assert compare.right_answers(mme, [{"doc_id": 3, "mme_cognition_score": {"score": 1.0}}]) == {3: True}


def test_command_line(pair, capsys, tmp_path):
    folder_a, folder_b, _, _ = pair
    assert compare.main([str(folder_a), str(folder_b)]) == 0
    assert "McNemar" in capsys.readouterr().out
    assert compare.main(["a", "b", "--runs", str(tmp_path), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["labels"] == ["visiondrop 64", "fastv 64"]
    assert compare.main([str(folder_a), "nothing", "--runs", str(tmp_path)]) == 2
    assert capsys.readouterr().err.startswith("error: no finished run 'nothing'")
    (folder_b / "samples.jsonl").write_text("{")
    assert compare.main([str(folder_a), str(folder_b)]) == 2
