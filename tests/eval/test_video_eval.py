"""The video benchmarks end to end: small videos and model, lmms-eval, words compared, a judge on loopback."""

import json
from dataclasses import replace

import pytest

from eval import run
from eval.benchmarks import video_data
from eval.errors import EvaluationError
from eval.models import llava as model_class
from eval.results import fingerprint, rows
from eval.tasks import video_qa
from llava.model.builder import load_pretrained_model
from tests.eval.test_judge_client import NO, YES, Server
from tests.llava.test_video_loading import write_original
from tests.support import video_models, videos
from visiondrop.families import adapter_for

COUNT = 6


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """Checkpoint, videos and question files."""
    root = tmp_path_factory.mktemp("video")
    write_original(root, video_models.native(4), inside=False)
    (root / "clips").mkdir()
    for i in range(COUNT):
        videos.write(root / "clips" / f"clip{i}.mp4", 5 + 3 * i)
    questions = [{"question_id": f"q{i}", "video_name": f"clip{i}", "question": f"What is {i}?"} for i in range(COUNT)]
    answers = [{"question_id": f"q{i}", "answer": f"answer {i}"} for i in reversed(range(COUNT))]
    (root / "q.json").write_text(json.dumps(questions))
    (root / "a.json").write_text(json.dumps(answers))
    for name in video_data.SETS:
        video_data.make(name, root / "q.json", root / "a.json", root / "clips", root / "data")
    return root


@pytest.fixture(autouse=True)
def short_answers(monkeypatch):
    """The small model never ends a sentence by itself."""
    stock = model_class.generation_settings
    monkeypatch.setattr(model_class, "generation_settings", lambda task: stock(task) | {"max_new_tokens": 6})


def evaluate(place, benchmark, *more) -> int:
    return run.main(
        [
            *(benchmark, "--tokens", "64", "--model", str(place / "video-llava-golden"), "--data", str(place / "data")),
            *("--out", str(place / "rows.jsonl"), "--runs", str(place / "runs"), *more),
        ]
    )


def last(place) -> dict:
    return rows.load(place / "rows.jsonl", strict=True)[0][-1]


def test_the_shown_ledger_and_the_identity_know_the_towers(tmp_path):
    """Both towers lie outside the checkpoint: their geometry is the model's, and their files are part of what it is."""
    found = fingerprint.checkpoint(str(write_original(tmp_path, video_models.native(4), inside=False)))
    _, model, *_ = load_pretrained_model(found.path, None, "video-llava", device_map="cpu", torch_dtype="float32")
    assert found.visual_shape() == model.visual_shape() and model.visual_shape().kind == "video"
    assert found.dims == replace(adapter_for(model).dims(), name=found.name)
    for kind in ("image", "video"):
        before = fingerprint.checkpoint(found.path).fingerprint
        (tmp_path / f"LanguageBind_{kind}" / "more.json").write_text("{}")
        assert fingerprint.checkpoint(found.path).fingerprint != before


def test_an_unreachable_budget_is_told_before_loading(place, monkeypatch, capsys):
    monkeypatch.setattr(model_class.builder, "load_pretrained_model", lambda *a, **k: pytest.fail("loaded"))
    assert evaluate(place, "msvd", "--tokens", "500") == 2 and "not reachable" in capsys.readouterr().err


def test_answers_are_joined_by_id(place):
    lines = [json.loads(x) for x in (place / "data/visiondrop/MSVD-QA/test.jsonl").read_text().splitlines()]
    assert [(x["question_id"], x["video"], x["answer"]) for x in lines] == [
        (f"q{i}", f"clip{i}.mp4", f"answer {i}") for i in range(COUNT)
    ]
    with pytest.raises(EvaluationError, match="no answer"):
        video_data.join([{"question_id": 1, "video_name": "a", "question": "?"}], [])
    with pytest.raises(EvaluationError, match="twice"):
        video_data.join([], [{"question_id": 1, "answer": "a"}] * 2)
    with pytest.raises(EvaluationError, match="no video 'gone'"):
        video_qa.find_video(place / "clips", "gone")


def test_the_converter_on_the_command_line(place, tmp_path, capsys):
    files = ["--questions", str(place / "q.json"), "--answers", str(place / "a.json"), "--data", str(tmp_path)]
    assert video_data.main(["TGIF-QA", *files, "--videos", str(place / "clips")]) == 0
    assert (tmp_path / "visiondrop" / "TGIF-QA" / "test.jsonl").read_text().count("\n") == COUNT
    assert video_data.main(["TGIF-QA", *files, "--videos", str(tmp_path)]) == 2
    assert "no video 'clip0'" in capsys.readouterr().err


@pytest.mark.parametrize(
    "said, true, expected",
    [
        ("A dog.", "dog", (0, 1, 1)),
        ("dog", "dog", (1, 1, 1)),
        ("The dog is running", "dog", (0, 0, 1)),
        ("hotdog", "dog", (0, 0, 0)),
        ("", "dog", (0, 0, 0)),
    ],
)
def test_matching_without_a_judge(said, true, expected):
    found = video_qa.process_results({"answer": true}, [said])
    assert (found["exact_match"], found["normalized_match"], found["contains_match"]) == expected


@pytest.mark.parametrize("benchmark", ["tgif", "msvd", "msrvtt"])
def test_offline_rows_need_no_judge(place, benchmark, capsys):
    assert evaluate(place, benchmark, "--limit", "2") == 0, capsys.readouterr().err
    row = last(place)
    assert row["benchmark"] == benchmark and row["n"] == 2 and row["partial"] and row["server"] is None
    assert row["ledger"]["layout"] == "video" and row["ledger"]["mean"] == 64
    assert row["conversation"] == "llava_v1" and set(row["metrics"]) == {
        "exact_match",
        "normalized_match",
        "contains_match",
    }


def test_the_judge_decides_and_is_not_asked_twice(place, capsys):
    server = Server()
    server.script = lambda number, body: {1: "no idea", 2: NO}.get(number, YES)
    judge = ("--protocol", "paper", "--judge-url", server.url, "--judge-model", "tiny-judge")
    try:
        assert evaluate(place, "msvd", *judge) == 0, capsys.readouterr().err
        row = last(place)
        assert len(server.seen) == COUNT
        assert row["score"] == pytest.approx(100 * 4 / 5) and row["metrics"]["judge_unparsable"] == 1
        assert row["metrics"]["judge_score"] == pytest.approx((4 * 5 + 1) / 5) and row["interval"]
        assert row["server"] == f"tiny-judge at {server.url}"
        assert "judge_unparsable 1" in capsys.readouterr().out
        folder = place / "runs" / row["folder"]
        for product in ("row.json", "outcome.json"):
            (folder / product).unlink()
        assert evaluate(place, "msvd", *judge) == 0
        assert len(server.seen) == COUNT and last(place)["score"] == row["score"]
    finally:
        server.http.shutdown()
        server.http.server_close()


@pytest.mark.parametrize(
    "more, word",
    [
        (("--protocol", "paper"), "--judge-url"),
        (("--protocol", "paper", "--judge-url", "nonsense", "--judge-model", "m"), "--judge-url"),
        (("--judge-url", "http://127.0.0.1:9/v1", "--judge-model", "m"), "needs no judge"),
    ],
)
def test_a_missing_or_needless_judge_is_refused_at_once(place, capsys, more, word):
    assert evaluate(place, "msvd", *more) == 2
    assert word in capsys.readouterr().err


def test_a_damaged_video_names_its_document(place, capsys):
    folder = place / "data" / "visiondrop" / "TGIF-QA" / "videos"
    (folder / "clip1.mp4").unlink()
    (folder / "clip1.mp4").write_bytes(b"damaged")
    assert evaluate(place, "tgif", "--limit", "3") == 2
    said = capsys.readouterr().err
    assert "clip1.mp4" in said and "document 1" in said and "Traceback" not in said
