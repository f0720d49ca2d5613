"""LLaVA-NeXT through the evaluation driver: both layouts, images of different crop counts, the layout in the row."""

import pytest
import torch
from datasets import Dataset, Features, Image, Value

from eval import run
from eval.models import llava as model_class
from eval.results import fingerprint, rows
from llava.anyres import use_layout
from llava.model.builder import load_pretrained_model
from tests.support import checkpoints, next_models

SIZES = [(640, 480), (1200, 300), (50, 50), (300, 1000)]


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A POPE of four drawn pictures, and a small checkpoint in v1.6's layout with its tower inside."""
    root = tmp_path_factory.mktemp("next")
    folder = root / "data" / "lmms-lab-encoder" / "POPE"
    (folder / "data").mkdir(parents=True)
    (folder / "README.md").write_text(
        "---\nconfigs:\n- config_name: default\n  data_files:\n  - split: test\n    path: data/test-*\n---\n"
    )
    text = Value("string")
    features = dict.fromkeys(("id", "question_id", "question", "answer", "image_source", "category"), text)
    questions = [
        {
            **dict(id=str(i), question_id=str(i), question="Is there a dog?", answer="yes" if i % 2 else "no"),
            **dict(image_source=f"picture{i}", category="random", image=next_models.picture(*size, seed=i)),
        }
        for i, size in enumerate(SIZES)
    ]
    Dataset.from_list(questions, features=Features({**features, "image": Image()})).to_parquet(
        folder / "data" / "test-00000-of-00001.parquet"
    )
    model = checkpoints.write_original(
        root,
        layers=4,
        tower="inside",
        image_aspect_ratio="anyres",
        mm_patch_merge_type="spatial_unpad",
        image_grid_pinpoints=next_models.pinpoints(336),
    )
    return root, model


@pytest.mark.parametrize("layout, more", [("anyres", ()), ("fixed-2880", ("--layout", "fixed-2880"))])
def test_the_row_names_the_layout(place, monkeypatch, capsys, layout, more):
    stock = model_class.generation_settings
    monkeypatch.setattr(model_class, "generation_settings", lambda task: stock(task) | {"max_new_tokens": 3})
    root, model = place
    command = ["pope", "--tokens", "160", "--model", str(model), "--data", str(root / "data"), "--batch-size", "2"]
    command += ["--out", str(root / "rows.jsonl"), "--runs", str(root / "runs"), *more]
    assert run.main(command) == 0, capsys.readouterr().err
    row = rows.load(root / "rows.jsonl", strict=True)[0][-1]
    assert row["ledger"]["layout"] == layout and row["ledger"]["mean"] == 160 and row["n"] == len(SIZES)


def test_the_plan_is_checked_and_shown_before_loading(place, tmp_path, monkeypatch, capsys):
    root, model = place
    monkeypatch.setattr(model_class.builder, "load_pretrained_model", lambda *a, **k: pytest.fail("loaded"))
    command = ["pope", "--method", "fastv", "--tokens", "300", "--model", str(model), "--data", str(root / "data")]
    command += ["--out", str(tmp_path / "rows.jsonl"), "--runs", str(tmp_path / "runs")]
    assert run.main(command) == 2 and "not reachable" in capsys.readouterr().err


def test_the_shown_shape_is_the_models(place):
    _, model, *_ = load_pretrained_model(str(place[1]), None, "v16", device_map="cpu", torch_dtype=torch.float32)
    checkpoint = fingerprint.checkpoint(str(place[1]))
    assert checkpoint.visual_shape() == model.visual_shape()
    use_layout(model, "fixed-2880")
    assert checkpoint.visual_shape("fixed-2880") == model.visual_shape()


SPATIAL = dict(image_aspect_ratio="anyres", mm_patch_merge_type="spatial", image_grid_pinpoints=[[672, 672]])


@pytest.mark.parametrize("settings, word", [({}, "no LLaVA-NeXT"), (SPATIAL, "image_newline")])
def test_a_layout_the_checkpoint_cannot_have(place, tmp_path, monkeypatch, capsys, settings, word):
    """A plain LLaVA, and a NeXT without the newline: one sentence before anything is loaded."""
    monkeypatch.setattr(model_class.builder, "load_pretrained_model", lambda *a, **k: pytest.fail("loaded"))
    model = checkpoints.write_original(tmp_path, layers=4, **settings)
    root, _ = place
    command = ["pope", "--tokens", "64", "--model", str(model), "--data", str(root / "data"), "--layout", "anyres"]
    command += ["--out", str(tmp_path / "rows.jsonl"), "--runs", str(tmp_path / "runs")]
    assert run.main(command) == 2
    error = capsys.readouterr().err
    assert word in error and "leave the layout out" in error and len(error.splitlines()) == 1


def test_a_checkpoint_of_v16_brings_its_own_tower(place):
    _, model, processor, _ = load_pretrained_model(
        str(place[1]), None, "v16", device_map="cpu", torch_dtype=torch.float32
    )
    assert model.visual_shape().source == "anyres" and model.visual_shape().tokens == 2928
    assert processor.crop_size["height"] == 336 and hasattr(model.model, "image_newline")
