"""Bad input to the evaluation driver: one sentence with the fix, exit code 2, nothing lost, no traceback."""

import errno
import json
import os
import re
import shutil

import pytest

from eval import run
from eval.benchmarks import data as eval_data
from eval.benchmarks.data import dataset_cache
from eval.results import rows
from eval.results.folder import RunFolder
from tests.eval.test_answers import fill_disk
from tests.eval.test_checkpoint import write_answering_checkpoint
from tests.support import datasets_small as small


@pytest.fixture(scope="module")
def shared(tmp_path_factory):
    """A checkpoint and the small ScienceQA set."""
    root = tmp_path_factory.mktemp("refusals")
    write_answering_checkpoint(root / "model")
    small.write_sqa(root / "data")
    with dataset_cache(root / "cache"):
        yield root


@pytest.fixture
def call(shared, tmp_path, capfd):
    """Run the driver in a fresh place; returns (exit code, the error sentence)."""

    def call(*arguments, **changes):
        named = {
            "model": shared / "model",
            "data": shared / "data",
            "out": tmp_path / "out.jsonl",
            "runs": tmp_path / "runs",
        }
        named = {k: v for k, v in {**named, **changes}.items() if v is not None}
        options = [text for name, value in named.items() for text in (f"--{name}", str(value))]
        capfd.readouterr()
        code = run.main([*(str(a) for a in arguments), *options])
        errors = capfd.readouterr().err
        assert "Traceback" not in errors
        sentences = [line for line in re.split(r"[\r\n]", errors) if line.startswith("error: ")]
        assert len(sentences) == (code == 2)
        return code, "".join(sentences)

    return call


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("sqaa", "--tokens", 16), "unknown benchmark 'sqaa': did you mean 'sqa'?"),
        (("sqa", "--tokens", 16, "--protocol", "papers"), "unknown protocol 'papers'"),
        (("sqa", "--tokens", 16, "--method", "visionbrop"), "did you mean 'visiondrop'"),
        (("sqa", "--tokens", 0), "1 … 64"),
        (("sqa", "--tokens", -3), "1 … 64"),
        (("sqa", "--tokens", 65), "1 … 64"),
        (("sqa", "--tokens", 63), "not reachable"),
        (("sqa",), "--tokens"),
        (("sqa", "--tokens", 16, "--option", "colour=red"), "colour"),
        (("sqa", "--tokens", 16, "--option", "score"), "name=value"),
        (("sqa", "--tokens", 16, "--option", "score=blue"), "'text'"),
        (("sqa", "--tokens", 16, "--limit", 0), "--limit 0"),
        (("mme", "--tokens", 16, "--limit", 3), "multiple of 2"),
        (("sqa", "--tokens", 16, "--batch-size", 0), "--batch-size 0"),
        (("sqa", "--tokens", 16, "--device", "cuda:99"), "cuda:99"),
        (("gqa", "--tokens", 16), "holds no lmms-lab-encoder/GQA"),
    ],
)
def test_wrong_arguments(call, arguments, message):
    code, sentence = call(*arguments)
    assert code == 2 and message in sentence


def test_missing_and_half_downloaded_checkpoints(call, shared, tmp_path):
    assert "does not exist" in call("sqa", "--tokens", 16, model=tmp_path / "nothing")[1]
    (tmp_path / "empty").mkdir()
    assert "no config.json" in call("sqa", "--tokens", 16, model=tmp_path / "empty")[1]
    half = shutil.copytree(shared / "model", tmp_path / "half")
    weights = half / "model.safetensors"
    os.truncate(weights, weights.stat().st_size // 2)
    code, sentence = call("sqa", "--tokens", 16, model=half)
    assert code == 2 and "half" in sentence
    (half / "config.json").write_text("{")
    assert "config.json" in call("sqa", "--tokens", 16, model=half)[1]


def test_no_network(call, monkeypatch):
    import huggingface_hub

    def unreachable(*args, **kwargs):
        raise ConnectionError("Name or service not known")

    monkeypatch.setattr(huggingface_hub.HfApi, "dataset_info", unreachable)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    code, sentence = call("sqa", "--tokens", 16, data=None)
    assert code == 2 and "there is no network" in sentence and "--data DIR" in sentence


def test_no_token(call, monkeypatch):
    import huggingface_hub

    monkeypatch.setattr(huggingface_hub.HfApi, "dataset_info", lambda *args, **kwargs: None)
    monkeypatch.setattr(huggingface_hub, "get_token", lambda: None)
    assert "HF_TOKEN" in call("sqa", "--tokens", 16, data=None)[1]


def test_a_folder_that_would_shadow_the_hub(call, shared, monkeypatch):
    monkeypatch.chdir(shared / "data")
    assert "--data ." in call("sqa", "--tokens", 16, data=None)[1]


def changed_sqa(tmp_path, change):
    """A data folder whose ScienceQA rows went through `change`."""
    from datasets import load_dataset

    source = small.write_sqa(tmp_path / "source") / "ScienceQA-IMG" / "test-00000-of-00001.parquet"
    table = change(load_dataset("parquet", data_files=str(source))["train"])
    target = small.write_sqa(tmp_path / "changed") / "ScienceQA-IMG" / "test-00000-of-00001.parquet"
    table.to_parquet(target)
    return tmp_path / "changed"


def test_missing_column_split_and_damaged_files(call, tmp_path):
    data = changed_sqa(tmp_path, lambda table: table.remove_columns("choices"))
    code, sentence = call("sqa", "--tokens", 16, data=data)
    assert code == 2 and "column choices is missing" in sentence
    readme = data / "lmms-lab-encoder" / "ScienceQA" / "README.md"
    readme.write_text(readme.read_text().replace("split: test", "split: train"))
    assert "no split 'test'" in call("sqa", "--tokens", 16, data=data)[1]
    readme.unlink()
    assert "cannot be loaded" in call("sqa", "--tokens", 16, data=data)[1]
    data = changed_sqa(tmp_path, lambda table: table)
    next(data.rglob("*.parquet")).write_bytes(b"PAR1 nothing")
    assert "cannot be loaded" in call("sqa", "--tokens", 16, data=data)[1]
    assert "not a folder" in call("sqa", "--tokens", 16, data=tmp_path / "none")[1]


def test_corrupt_image_names_its_document_and_keeps_the_answers(call, tmp_path):
    from datasets import Image

    def spoil(table):
        rows_ = table.cast_column("image", Image(decode=False)).to_list()
        rows_[2]["image"] = {"bytes": b"not a picture", "path": None}
        return type(table).from_list(rows_, features=table.features)

    code, sentence = call("sqa", "--tokens", 16, data=changed_sqa(tmp_path, spoil))
    assert code == 2 and "image of document 2 of task scienceqa_img" in sentence
    stored = next((tmp_path / "runs").glob("*/answers-0.jsonl")).read_text().splitlines()
    assert 0 < len(stored) < 4 and all(json.loads(line)["doc_id"] != 2 for line in stored)


def test_output_places_that_cannot_be_written(call, tmp_path):
    (tmp_path / "file").write_text("")
    assert "choose another --out" in call("sqa", "--tokens", 16, out=tmp_path / "file" / "out.jsonl")[1]
    assert "choose another --runs" in call("sqa", "--tokens", 16, runs=tmp_path / "file" / "runs")[1]
    assert not (tmp_path / "out.jsonl").exists() or not rows.load(tmp_path / "out.jsonl")[0]


def full(path_part: str, real):
    """`os.write` for a disk that is full for files whose name holds `path_part`, after a few bytes."""

    def write(descriptor, data):
        if path_part in os.readlink(f"/proc/self/fd/{descriptor}"):
            raise OSError(errno.ENOSPC, "No space left on device")
        return real(descriptor, data)

    return write


def test_disk_full_while_answers_or_the_row_are_written(call, tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(os, "write", full("answers-0", os.write))
        code, sentence = call("sqa", "--tokens", 16)
        assert code == 2 and "the disk is full; the 0 answers stored so far are safe" in sentence
    with monkeypatch.context() as patch:
        patch.setattr(os, "write", full("out.jsonl", os.write))
        code, sentence = call("sqa", "--tokens", 16)
        assert code == 2 and "the result row could not be written" in sentence and "the disk is full" in sentence
    assert rows.load(tmp_path / "out.jsonl") == ([], [])
    answers = next((tmp_path / "runs").glob("*/answers-0.jsonl"))
    before = answers.stat().st_mtime_ns
    assert call("sqa", "--tokens", 16) == (0, "")
    assert len(rows.load(tmp_path / "out.jsonl", strict=True)[0]) == 1 and answers.stat().st_mtime_ns == before


def test_disk_full_after_some_answers_loses_none_of_them(call, tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        fill_disk(patch, after=250)
        code, sentence = call("sqa", "--tokens", 16)
    stored = next((tmp_path / "runs").glob("*/answers-0.jsonl")).read_text().splitlines()
    assert code == 2 and 0 < len(stored) < 4 and f"the {len(stored)} answers stored so far are safe" in sentence
    assert call("sqa", "--tokens", 16) == (0, "")
    (row,) = rows.load(tmp_path / "out.jsonl")[0]
    assert [s["stored"] for s in row["sessions"]] == [0, len(stored)] and row["n"] == 4


def test_a_run_in_progress_is_not_started_twice(call, shared, tmp_path):
    places = [
        "--model",
        shared / "model",
        "--data",
        shared / "data",
        "--out",
        tmp_path / "out.jsonl",
        "--runs",
        tmp_path / "runs",
    ]
    settings = run.prepare(run.parser().parse_args(["sqa", "--tokens", "16", *map(str, places)]))
    with RunFolder(settings).locked():
        assert "going on in another process" in call("sqa", "--tokens", 16)[1]
    assert call("sqa", "--tokens", 16) == (0, "")


def test_an_error_inside_lmms_eval_is_loud(call, monkeypatch, tmp_path):
    def broken(*args, **kwargs):
        raise KeyError("something inside")

    monkeypatch.setattr("lmms_eval.evaluator.evaluate", broken)
    code, sentence = call("sqa", "--tokens", 16)
    assert code == 2 and "KeyError: 'something inside'" in sentence and "traceback-0.txt" in sentence
    assert "in broken" in next((tmp_path / "runs").glob("*/traceback-0.txt")).read_text()


def test_changed_data_under_the_same_name_are_not_answered_from_a_cache(call, tmp_path):
    """`datasets` itself would serve the rows prepared first: it names a local folder's cache after the README only."""
    first = changed_sqa(tmp_path / "a", lambda table: table)
    second = changed_sqa(tmp_path / "b", lambda table: table.select([0, 1, 2]))
    assert call("sqa", "--tokens", 16, data=first)[0] == call("sqa", "--tokens", 16, data=second)[0] == 0
    assert [row["n"] for row in rows.load(tmp_path / "out.jsonl", strict=True)[0]] == [4, 3]


def test_good_data_pass(shared):
    from eval import benchmarks

    assert eval_data.check(benchmarks.get("sqa", "offline"), shared / "data", "0") == {
        "lmms-lab-encoder/ScienceQA": "local"
    }
