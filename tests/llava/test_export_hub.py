"""The testbed as a hub folder: stock transformers answers as our class does, and our loader reads it back unchanged."""

import json

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import AutoProcessor, LlavaForConditionalGeneration

import visiondrop
from eval.files import ROOT
from llava.adapter import load
from llava.checkpoints.read import read_checkpoint
from llava.export_hub import chat_template, export, main
from llava.prompts import prompt_of
from visiondrop.errors import UnsupportedError, VisionDropError

SOURCE = str(ROOT / "checkpoints" / "testbed")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return export(SOURCE, tmp_path_factory.mktemp("hub") / "testbed")


@pytest.fixture(scope="module")
def stock(folder):
    return LlavaForConditionalGeneration.from_pretrained(folder, dtype=torch.float32).eval()


@pytest.fixture(scope="module")
def ours():
    return load(SOURCE, torch.float32)


def photo(seed: int, size=(200, 320)) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 255, (*size, 3), dtype=np.uint8))


@pytest.mark.parametrize("method, tokens", [("none", None), ("visionzip", 64), ("visiondrop", 64)])
def test_stock_transformers_answers_as_our_class_does(folder, stock, ours, method, tokens):
    processor = AutoProcessor.from_pretrained(folder, backend="pil")
    question = "is there a red star? yes or no"
    messages = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": question}]}]
    text = processor.apply_chat_template(messages, add_generation_prompt=True)
    assert text == prompt_of(ours.model.config, question)
    inputs = processor(images=[photo(1)], text=[text], return_tensors="pt")
    own = ours.inputs(photo(1), question)
    assert (inputs["pixel_values"][0] - own["images"][0].squeeze(0)).abs().max() <= 1e-6
    with visiondrop.apply(stock, method, tokens), visiondrop.apply(ours.model, method, tokens), torch.no_grad():
        theirs = stock(**inputs).logits[0, -1, : ours.model.config.vocab_size]
        assert (theirs - ours.model(**own).logits[0, -1]).abs().max() <= 2e-5
        new = stock.generate(**inputs, max_new_tokens=4, do_sample=False)[:, inputs["input_ids"].shape[1] :]
        assert processor.batch_decode(new, skip_special_tokens=True)[0].strip() == ours.text(
            ours.generate(own, max_new_tokens=4, do_sample=False)[0]
        )


def test_our_loader_reads_it_back_unchanged(folder):
    before, after = read_checkpoint(SOURCE), read_checkpoint(folder)
    assert before.weights.keys() == after.weights.keys()
    for name, value in before.weights.items():
        assert torch.equal(after.weights[name][: len(value)], value), name
        assert not after.weights[name][len(value) :].any()
    assert after.config.mm_vision_select_layer == before.config.mm_vision_select_layer
    names = json.loads((folder / "config.json").read_text())["architectures"]
    assert names == ["LlavaForConditionalGeneration"]


def test_weights_in_shards_are_the_same(tmp_path, monkeypatch):
    monkeypatch.setattr("llava.export_hub.SHARD", 10**6)
    sharded = export(SOURCE, tmp_path / "sharded")
    assert len(list(sharded.glob("model-*.safetensors"))) > 2
    whole = read_checkpoint(SOURCE).weights
    assert all(torch.equal(v[: len(whole[k])], whole[k]) for k, v in read_checkpoint(sharded).weights.items())


def test_what_cannot_be_exported_is_told(tmp_path, capsys):
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").write_text("x")
    with pytest.raises(VisionDropError, match="holds files"):
        export(SOURCE, tmp_path / "full")
    with pytest.raises(UnsupportedError, match="anyres"):
        export(str(ROOT / "checkpoints" / "testbed-next"), tmp_path / "next")
    with pytest.raises(UnsupportedError, match="mistral_instruct"):
        chat_template("mistral_instruct")
    assert main([str(tmp_path / "nothing"), str(tmp_path / "out")]) == 2
    assert capsys.readouterr().err.startswith("error: ")
