"""Documents, reasoning and grounding end to end: small data in the true schema, lmms-eval's unmodified tasks, hand counts."""

import re
from collections import defaultdict

import pytest
import yaml

from eval import benchmarks
from eval.files import ROOT
from eval.models.llava import LlavaVisionDrop
from tests.eval.test_checkpoint import write_answering_checkpoint
from tests.eval.test_judge_client import Server
from tests.eval.test_run import Place
from tests.support import datasets_more
from tests.support.datasets_small import colour_name


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    made = Place(tmp_path_factory.mktemp("more"))
    write_answering_checkpoint(made.model)
    datasets_more.write_all(made.data)
    return made


def answers_of(place, benchmark: str, *more) -> tuple[dict, list[str]]:
    assert place.run(benchmark, "--tokens", 16, *more) == 0
    row = place.rows(benchmark)[-1]
    samples = place.samples(row)
    assert row["n"] == len(samples) and row["interval_method"]
    return row, [s["answer"] for s in samples]


def edits(a: str, b: str) -> int:
    """Edit distance, by its recursion."""
    if not a or not b:
        return len(a) + len(b)
    return min(edits(a[1:], b) + 1, edits(a, b[1:]) + 1, edits(a[1:], b[1:]) + (a[0] != b[0]))


def likeness(said: str, true: str) -> float:
    """ANLS of one answer: 1 - distance / length, 0 below a half."""
    value = 1 - edits(said.lower(), true.lower()) / max(len(said), len(true))
    return value if value >= 0.5 else 0.0


HAND = {
    "ai2d": lambda said: [a == "ABC"[i % 3] for i, a in enumerate(said)],
    "chartqa": lambda said: [a.lower() == ("42" if i == 2 else colour_name(i)) for i, a in enumerate(said)],
    "docvqa": lambda said: [likeness(a, colour_name(i)) for i, a in enumerate(said)],
    "infovqa": lambda said: [likeness(a, colour_name(i)) for i, a in enumerate(said)],
    "realworldqa": lambda said: [
        a == "ABC"[i % 3] if i % 2 else a.lower() == colour_name(i) for i, a in enumerate(said)
    ],
}


@pytest.mark.parametrize("benchmark", HAND)
def test_score_is_the_mean_of_a_hand_count(place, benchmark):
    row, said = answers_of(place, benchmark)
    right = [float(r) for r in HAND[benchmark](said)]
    assert row["score"] == pytest.approx(100 * sum(right) / len(right), abs=1e-3)
    assert len(set(said)) > 1


def test_ocrbench_counts_to_a_thousand(place):
    for _ in range(2):  # its aggregation keeps a count in its module: a second run in one process must not see it
        row, said = answers_of(place, "ocrbench", "--force")
        assert row["score"] == pytest.approx(
            sum(colour_name(i) in a.lower() or ("a" if i % 2 else "yes") in a.lower() for i, a in enumerate(said))
        )


def test_mmstar_is_a_mean_over_kinds(place):
    row, said = answers_of(place, "mmstar")
    kinds = defaultdict(list)
    for i, answer in enumerate(said):
        kinds[0 if i < 4 else 1 + i % 2].append(answer == "ABC"[i % 3])
    assert row["score"] == pytest.approx(100 * sum(sum(k) / len(k) for k in kinds.values()) / 3)


def test_mmmu_reads_letters_and_free_answers(place, monkeypatch):
    """Right: A (a letter), the option's letter in brackets, the free answer; wrong: two letters."""
    told = ["A", "(B)", "B", "The answer is A.", "C", "It is green"]
    monkeypatch.setattr(LlavaVisionDrop, "_answer", lambda self, requests: [told[r.args[3]] for r in requests])
    row, said = answers_of(place, "mmmu")
    assert said == told and row["score"] == pytest.approx(100 * 4 / 6, abs=1e-3)


def test_seed_counts_questions_about_pictures(place):
    row, said = answers_of(place, "seed")
    right = [a[:1].lower() == "abcd"[i % 4] for i, a in enumerate(said) if i % 3 != 2]
    assert row["n"] == 7 and row["score"] == pytest.approx(100 * sum(right) / 5)


@pytest.mark.parametrize("benchmark", ["refcoco_val", "refcoco_testb", "refcoco_plus_testa", "refcocog_test"])
def test_boxes_by_hand(place, benchmark, monkeypatch):
    """A model that tells boxes: right to the pixel for picture 0, three quarters of the width for 1, no box for 2, half as
    tall and shifted for 3.  Six descriptions, of four boxes."""
    told, real = {0: (8, 16, 40, 32), 1: (12, 16, 36, 32), 3: (20, 24, 52, 40)}, LlavaVisionDrop._answer

    def answer(self, requests):
        real(self, requests)  # the run counts what the decoder really gets
        out = []
        for request in requests:
            _, _, _, doc_id, task, split = request.args
            number = int(self.task_dict[task][split][doc_id]["question_id"])
            box = [v / (96, 64)[k % 2] for k, v in enumerate(told.get(number, ()))]
            out.append(f"It is at [{', '.join(f'{v:.6f}' for v in box)}]." if box else "nowhere")
        return out

    monkeypatch.setattr(LlavaVisionDrop, "_answer", answer)
    row, said = answers_of(place, benchmark)
    assert len(said) == 6
    # picture 0: overlap 1; 1: 24 x 16 of 32 x 16, 0.75 (two descriptions); 2: 0; 3: 32 x 8 of 32 x 16 + 32 x 8, a third (two)
    assert row["score"] == pytest.approx(100 * 3 / 6)
    assert row["metrics"]["refcoco_IoU"] == pytest.approx((1 + 2 * 0.75 + 0 + 2 / 3) / 6, abs=1e-4)


def test_mmvet_is_marked_by_a_judge_with_its_authors_prompt(place, monkeypatch):
    """Marks of five answers, one of them unreadable; the request is the shipped task's, read from its source."""
    monkeypatch.setattr("eval.models.llava.MAX_NEW_TOKENS", 4)
    server, marks = Server(), ["1.0", "0.5 because", "0.0", "a lot", "0.25"]

    def mark(number, body):
        asked = body["messages"][0]["content"].splitlines()[-1]
        return marks[int(re.search(r"thing (\d)", asked)[1])]

    server.script = mark
    judge = ("--protocol", "paper", "--judge-url", server.url, "--judge-model", "tiny")
    assert place.run("mmvet", "--tokens", 16, *judge) == 0
    row = place.rows("mmvet")[-1]
    assert row["score"] == pytest.approx(100 * (1 + 0.5 + 0 + 0.25) / 4) and row["metrics"]["judge_unparsable"] == 1
    assert row["metrics"]["judge_accuracy"] == pytest.approx(1 / 4)
    said = {s["doc_id"]: s["answer"] for s in place.samples(row)}
    last = {b["messages"][0]["content"].splitlines()[-1]: b["messages"] for _, _, b in server.seen}
    assert set(last) >= {f"What color is thing 1? | {colour_name(1)} <AND> bright | {said[1]} |"}
    shipped = (benchmarks.get("ai2d", "paper").folder.parent / "mmvet" / "utils.py").read_text()
    prompt = next(iter(last.values()))[0]["content"]
    assert prompt[: prompt.rindex("What color")].strip() in shipped and len(prompt) > 2000
    assert place.run("mmvet", "--tokens", 16, *judge, "--force") == 0


def test_mmvet_asks_as_the_shipped_task():
    twin = yaml.safe_load(re.sub(r"!function \S+", "x", (ROOT / "eval" / "tasks" / "mmvet_answers.yaml").read_text()))
    folder = benchmarks.get("ai2d", "paper").folder.parent / "mmvet"
    shipped = yaml.safe_load(re.sub(r"!function \S+", "x", (folder / "mmvet.yaml").read_text()))
    for key in ("dataset_path", "test_split", "generation_kwargs", "lmms_eval_specific_kwargs", "output_type"):
        assert twin[key] == shipped[key]


def test_a_group_runs_its_benchmarks_and_leaves_none_out(place, capsys):
    assert place.run("documents", "--tokens", 8) == 0
    shown = capsys.readouterr().out
    assert [line[3:] for line in shown.splitlines() if line.startswith("== ")] == [
        *("ai2d", "chartqa", "docvqa", "infovqa", "ocrbench")
    ]
    assert place.run("documents", "--tokens", 8) == 0
    assert capsys.readouterr().out.count("this run was finished") == 5


def test_a_missing_module_is_named(place, capsys, monkeypatch):
    (place.data / "lmms-eval/Video-MME").mkdir(parents=True)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None if name == "cv2" else True)
    assert place.run("videomme", "--tokens", 8) == 2
    assert "opencv-python-headless" in capsys.readouterr().err
