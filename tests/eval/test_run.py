"""The evaluation driver end to end: small self-made data, a small checkpoint, lmms-eval's unmodified tasks."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from datasets import load_dataset
from lmms_eval.tasks._task_utils.vqa_eval_metric import EvalAIAnswerProcessor

import visiondrop
from eval import run
from eval.benchmarks.data import dataset_cache
from eval.files import ROOT
from eval.results import rows
from eval.results.folder import RunFiles
from tests.eval.test_checkpoint import ANSWERS, ask, load_answering, write_answering_checkpoint
from tests.support import datasets_small as small

TAIL = "\nAnswer the question using a single word or phrase."
POPE_QUESTIONS = 90


class Place:
    """Folders of this module, and the driver called with them."""

    def __init__(self, root: Path):
        self.root, self.data, self.out, self.runs = root, root / "data", root / "rows.jsonl", root / "runs"
        self.model, self.yes_no = root / "words", root / "yes_no"

    def options(self, *more, model=None) -> list[str]:
        return [
            *(
                "--model",
                str(model or self.model),
                "--data",
                str(self.data),
                "--out",
                str(self.out),
                "--runs",
                str(self.runs),
            ),
            *(str(m) for m in more),
        ]

    def run(self, benchmark, *more, model=None) -> int:
        return run.main([benchmark, *self.options(*more, model=model)])

    def rows(self, benchmark) -> list[dict]:
        return (
            [r for r in rows.load(self.out, strict=True)[0] if r["benchmark"] == benchmark] if self.out.exists() else []
        )

    def samples(self, row) -> list[dict]:
        return RunFiles(self.runs / row["folder"]).samples()


@pytest.fixture(scope="module")
def shared(tmp_path_factory):
    """Data sets and checkpoints, made once."""
    place = Place(tmp_path_factory.mktemp("eval"))
    write_answering_checkpoint(place.model)
    write_answering_checkpoint(place.yes_no, ("Yes", "No"))
    small.write_all(place.data)
    small.write_gqa(place.data, 16)
    small.write_pope(place.data, POPE_QUESTIONS)
    with dataset_cache(place.root / "cache"):
        yield place


@pytest.fixture
def place(shared, tmp_path):
    """The shared data and checkpoints, with results of this test's own."""
    own = Place(shared.root)
    own.out, own.runs = tmp_path / "rows.jsonl", tmp_path / "runs"
    return own


def script(place, benchmark, *arguments, cwd=None, **more) -> subprocess.Popen:
    environment = {**os.environ, "PYTHON": sys.executable, "OMP_NUM_THREADS": "1"}
    command = ["bash", str(ROOT / "scripts" / "eval" / f"{benchmark}.sh"), *(str(a) for a in arguments)]
    pipes = dict(stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    return subprocess.Popen(command, cwd=cwd or place.root, env=environment, **pipes, **more)


def f1_by_hand(pairs: list[tuple[str, str]]) -> float:
    """F1 of yes from (answer, truth)."""
    hits = sum(a == t == "yes" for a, t in pairs)
    precision = hits / sum(a == "yes" for a, _ in pairs)
    recall = hits / sum(t == "yes" for _, t in pairs)
    return 2 * precision * recall / (precision + recall)


def test_gqa_script_from_another_directory_gives_the_score_known_beforehand(place, tmp_path):
    """Gold answers are written so that 7 of 12 answers of the pruned model are right."""
    loaded = load_answering(place.model)
    with visiondrop.apply(loaded[1], method="visiondrop", tokens=16):
        said = [ask(loaded, i // 2, f"What is the colour of thing {i}?{TAIL}") for i in range(12)]
    gold = [s if i < 7 else next(w for w in ANSWERS if w.lower() != s.lower()) for i, s in enumerate(said)]
    small.write_gqa(tmp_path / "own", 12, gold)
    process = script(
        place,
        "gqa",
        16,
        *("--model", place.model, "--data", "own", "--out", "results.jsonl", "--runs", "runs"),
        cwd=tmp_path,
    )
    shown, errors = process.communicate()
    assert process.returncode == 0, errors
    (row,), problems = rows.load(tmp_path / "results.jsonl")
    assert not problems and row["score"] == pytest.approx(100 * 7 / 12) and row["n"] == 12
    place.runs = tmp_path / "runs"
    assert [s["answer"] for s in place.samples(row)] == said
    assert "mean 16.00 tokens per layer" in shown and "GQA (offline, testdev), visiondrop" in shown and "58.33" in shown
    assert "Traceback" not in errors


def test_mme_script_equals_a_hand_count(place):
    process = script(place, "mme", 16, *place.options(model=place.yes_no), "--batch-size", 3)
    errors = process.communicate()[1]
    assert process.returncode == 0, errors
    (row,) = place.rows("mme")
    data = load_dataset("parquet", data_files=str(place.data / "lmms-lab-encoder/MME/default/*.parquet"))["train"]
    totals: dict[str, dict[str, list[bool]]] = {}
    for sample, doc in zip(place.samples(row), data):
        assert sample["doc"]["question_id"] == doc["question_id"]
        pairs = totals.setdefault(doc["category"], {})
        pairs.setdefault(doc["question_id"], []).append(sample["answer"] == doc["answer"])
    by_hand = {
        category: sum(50 * sum(p) + 100 * all(p) for p in pairs.values()) / len(pairs)
        for category, pairs in totals.items()
    }
    assert row["metrics"]["mme_cognition_score"] == pytest.approx(by_hand["code_reasoning"])
    assert row["metrics"]["mme_perception_score"] == pytest.approx(by_hand["existence"] + by_hand["color"])
    assert row["score"] == pytest.approx(sum(by_hand.values())) and row["score"] > 0


@pytest.fixture(scope="module")
def killed(shared, tmp_path_factory):
    """A POPE run by script, killed with SIGKILL after some answers, then started again; how many answers survived."""
    place = Place(shared.root)
    folder = tmp_path_factory.mktemp("killed")
    place.out, place.runs = folder / "rows.jsonl", folder / "runs"
    process = script(place, "pope", 16, *place.options(model=place.yes_no))
    deadline, files = time.monotonic() + 120, []
    while time.monotonic() < deadline and process.poll() is None:
        files = files or list(place.runs.glob("pope-*/answers-0.jsonl"))
        if files and files[0].read_bytes().count(b"\n") >= 10:
            break
        time.sleep(0.002)
    process.send_signal(signal.SIGKILL)
    errors = process.communicate()[1]
    assert files, errors
    survived = files[0].read_bytes().count(b"\n")
    assert 10 <= survived < POPE_QUESTIONS and not place.rows("pope"), errors
    assert place.run("pope", "--tokens", 16, model=place.yes_no) == 0
    return place, survived


def test_a_killed_run_goes_on_and_loses_and_doubles_nothing(killed):
    place, survived = killed
    (row,) = place.rows("pope")
    lines = (place.runs / row["folder"] / "answers-0.jsonl").read_text().splitlines()
    assert sorted(json.loads(line)["doc_id"] for line in lines) == list(range(POPE_QUESTIONS))
    assert [s["stored"] for s in row["sessions"]] == [0, survived]
    samples = place.samples(row)
    assert [s["doc_id"] for s in samples] == list(range(POPE_QUESTIONS))
    truth = load_dataset("parquet", data_files=str(place.data / "lmms-lab-encoder/POPE/default/*.parquet"))["train"][
        "answer"
    ]
    by_hand = f1_by_hand([(s["answer"].lower(), t) for s, t in zip(samples, truth)])
    assert row["score"] == pytest.approx(100 * by_hand) and 0 < by_hand < 1


def test_two_processes_give_the_predictions_of_one(place, killed, capfd):
    assert place.run("pope", "--tokens", 16, "--processes", 2, model=place.yes_no) == 0, capfd.readouterr().err
    (row,), (alone,) = place.rows("pope"), killed[0].rows("pope")
    assert place.samples(row) == killed[0].samples(alone)
    assert all(row[name] == alone[name] for name in ("score", "interval", "run", "questions", "ledger"))
    assert (row["processes"], alone["processes"]) == (2, 1)
    counts = [len(f.read_text().splitlines()) for f in sorted((place.runs / row["folder"]).glob("answers-*.jsonl"))]
    assert counts == [POPE_QUESTIONS // 2] * 2


@pytest.mark.parametrize("benchmark", ["gqa", "pope", "sqa"])
def test_shipped_llava_gives_our_answers_with_pruning_off(place, benchmark, monkeypatch):
    """lmms-eval's unmodified class on our llava package, both at float16 on the CPU."""
    from lmms_eval.evaluator import simple_evaluate
    from lmms_eval.models import get_model
    from lmms_eval.tasks import TaskManager

    from eval import benchmarks
    from eval.benchmarks import data

    assert place.run(benchmark, "--tokens", 64, "--method", "none", "--dtype", "float16") == 0
    ours = [s["answer"] for s in place.samples(place.rows(benchmark)[0])]
    entry = benchmarks.get(benchmark, "offline")
    arguments = f"pretrained={place.model},device_map=auto,model_name=llava-v1.5-7b"
    lm = get_model("llava").create_from_arg_string(arguments, {"batch_size": 1, "device": "cpu"})
    with data.place(place.data, "shipped"):
        manager = TaskManager(include_path=str(entry.folder), include_defaults=False, model_name="llava")
        results = simple_evaluate(model=lm, tasks=[entry.task], task_manager=manager, bootstrap_iters=0)
    theirs = [s["filtered_resps"][0] for s in sorted(results["samples"][entry.task], key=lambda s: s["doc_id"])]
    assert theirs == ours and len(set(ours)) > 1


def test_finished_run_is_skipped_and_force_does_it_again(place, capsys):
    arguments = ["sqa", "--tokens", 16, "--option", "merge=off"]
    assert place.run(*arguments) == 0
    capsys.readouterr()
    assert place.run(*arguments) == 0
    assert "finished on" in capsys.readouterr().out and len(place.rows("sqa")) == 1
    answers = next(place.runs.glob("sqa-*")) / "answers-0.jsonl"
    before = answers.stat().st_mtime_ns
    assert place.run(*arguments, "--force") == 0
    assert answers.stat().st_mtime_ns > before and len(place.rows("sqa")) == 2
    assert place.run(*arguments, "--out", place.out.parent / "other.jsonl") == 0
    assert rows.load(place.out.parent / "other.jsonl")[0] == place.rows("sqa")[1:]


def test_row_is_a_birth_certificate(place):
    assert place.run("sqa", "--tokens", 16, "--limit", 2, "--option", "dominant_ratio=0.5", "--seed", 3) == 0
    (row,) = place.rows("sqa")
    assert (
        row["ledger"]["tokens_per_layer"]
        == visiondrop.plan("visiondrop", 16, layers=4, patches=64, dominant_ratio=0.5).tokens_per_layer()
    )
    assert (row["method"], row["tokens"], row["options"], row["seed"]) == ("visiondrop", 16, {"dominant_ratio": 0.5}, 3)
    assert (row["limit"], row["partial"], row["n"], row["n_full"]) == (2, True, 2, 2017)
    assert (row["model"], row["dtype"], row["device"], row["attention"]) == ("words", "float32", "cpu", "sdpa")
    assert row["versions"]["torch"] == torch.__version__ and row["versions"]["lmms_eval"] == "0.7.3"
    assert str(place.root) not in json.dumps(row)


def test_identity_separates_what_can_change_an_answer(place, monkeypatch):
    def identity(*more, model=None):
        return run.prepare(run.parser().parse_args(["sqa", *place.options(*more, model=model)])).run

    base = identity("--tokens", 16)
    assert base == identity(
        "--tokens", 16, "--runs", place.runs / "x", "--out", place.runs / "y.jsonl", "--processes", 2
    )
    others = {
        identity("--tokens", 17),
        identity("--tokens", 16, "--method", "visiondrop", "--option", "score=text"),
        identity("--tokens", 16, "--limit", 2),
        identity("--tokens", 16, "--dtype", "float16"),
        identity("--tokens", 16, "--attn", "eager"),
        identity("--tokens", 16, "--batch-size", 2),
        identity("--tokens", 16, "--protocol", "paper"),
        identity("--tokens", 16, "--seed", 1),
        identity("--tokens", 16, model=place.yes_no),
    }
    assert len(others) == 9 and base not in others


@pytest.mark.parametrize("benchmark", ["mmbench", "mmbench_cn", "vqav2", "vizwiz"])
def test_paper_protocol_writes_an_upload_file(place, benchmark, capsys):
    assert place.run(benchmark, "--tokens", 16, "--protocol", "paper") == 0
    (row,) = place.rows(benchmark)
    (name,) = row["upload"]
    file = place.runs / row["folder"] / name
    answers = [s["answer"] for s in place.samples(row)]
    if name.endswith(".xlsx"):
        import pandas as pd

        table = pd.read_excel(file)
        assert list(table["prediction"]) == answers and {"index", "question", "A", "B", "C", "D"} <= set(table.columns)
    else:
        written = json.loads(file.read_text())
        assert [w["answer"] for w in written] == [EvalAIAnswerProcessor()(a) for a in answers]
        assert len({str(w.get("question_id") or w["image"]) for w in written}) == len(answers)
    assert row["score"] is None and row["interval"] is None and row["server"] in capsys.readouterr().out


@pytest.mark.parametrize("benchmark", ["mmbench", "mmbench_cn", "vqav2", "textvqa", "vizwiz"])
def test_the_other_offline_benchmarks_run_and_are_recounted(place, benchmark):
    assert place.run(benchmark, "--tokens", 16, "--batch-size", 4) == 0
    (row,) = place.rows(benchmark)
    assert 0 <= row["score"] <= 100 and row["n"] == len(place.samples(row))


def test_textvqa_of_the_paper_has_ocr_tokens_in_the_prompt(place):
    assert place.run("textvqa", "--tokens", 16, "--protocol", "paper", "--limit", 1) == 0
    (sample,) = place.samples(place.rows("textvqa")[0])
    assert sample["prompt"] == f"What does the sign 0 say?\nReference OCR token: STOP, 0{TAIL}"
