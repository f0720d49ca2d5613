"""Long-video benchmarks end to end: drawn clips and small data in the true schema, lmms-eval's unmodified tasks, hand counts."""

import importlib.util
import sys
import types

import pytest

from eval import run
from eval.benchmarks import get
from eval.models.llava import LlavaVisionDrop
from eval.results import rows
from eval.results.folder import RunFiles
from eval.tasks.video_qa import VideoFile
from tests.llava.test_video_loading import write_original
from tests.support import datasets_video, video_models

# right: 0, 1, 3; wrong: 2 (A), 4 (C), 5 (A); the true letters are A B C A B C
TOLD = ("A", "B", "A", "(A)", "C", "A")
BY_HAND = {
    "videomme": 50.0,
    "mlvu": (2 / 3 + 1 / 2 + 0) / 7 * 100,  # three kinds of questions of its seven
    "longvideobench": 50.0,
    "egoschema": 50.0,
    "nextqa": 50.0,
    "mvbench_action_count": 50.0,
}


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    root = tmp_path_factory.mktemp("long")
    write_original(root, video_models.native(4), inside=False)
    for write in datasets_video.WRITERS.values():
        write(root / "data")
    return root


@pytest.fixture
def modules(monkeypatch):
    """Video-MME's task imports OpenCV for subtitles only, LongVideoBench's decord for frames only."""
    for name in ("cv2", "decord"):
        if importlib.util.find_spec(name) is None:
            made = types.ModuleType(name)
            made.__spec__ = importlib.util.spec_from_loader(name, None)
            made.VideoReader = made.cpu = None
            monkeypatch.setitem(sys.modules, name, made)


def evaluate(place, benchmark: str, *more) -> int:
    return run.main(
        [
            *(benchmark, "--tokens", "64", "--model", str(place / "video-llava-golden"), "--data", str(place / "data")),
            *("--out", str(place / "rows.jsonl"), "--runs", str(place / "runs"), *more),
        ]
    )


@pytest.mark.parametrize("benchmark", BY_HAND)
def test_scores_are_the_hand_counts(place, benchmark, monkeypatch, modules):
    """Every clip is decoded and seen; what the model says is replaced by known letters."""
    stock = LlavaVisionDrop._answer

    def answer(self, requests):
        for request in requests:
            (clip,) = self._images(request)
            assert isinstance(clip, VideoFile) and clip.path.is_file()
        assert len(stock(self, requests)) == len(requests)
        return [TOLD[request.args[3]] for request in requests]

    monkeypatch.setattr("eval.models.llava.MAX_NEW_TOKENS", 2)
    monkeypatch.setattr(LlavaVisionDrop, "_answer", answer)
    assert evaluate(place, benchmark) == 0
    row = rows.load(place / "rows.jsonl", strict=True)[0][-1]
    assert row["n"] == 6 and row["score"] == pytest.approx(BY_HAND[benchmark], abs=1e-3)
    assert [s["answer"] for s in RunFiles(place / "runs" / row["folder"]).samples()] == list(TOLD)


def test_videos_that_are_not_there_are_told_before_anything_is_loaded(place, capsys, modules):
    (place / "data" / "mlvu").rename(place / "data" / "elsewhere")
    try:
        assert evaluate(place, "mlvu", "--option", "merge=off") == 2
    finally:
        (place / "data" / "elsewhere").rename(place / "data" / "mlvu")
    assert (
        f"holds no folder mlvu, where lmms-eval looks for the videos of {get('mlvu', 'offline').title}"
        in capsys.readouterr().err
    )
