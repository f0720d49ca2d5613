"""The same question becomes the same ids in the evaluation, in `ask` and in `visiondrop.encode`."""

from types import SimpleNamespace

import pytest
import torch
from PIL import Image

import visiondrop
from eval.models.llava import LlavaVisionDrop
from eval.models.request import bare
from eval.settings import ModelSettings
from llava import adapter
from llava.checkpoints.tokenizer import load_tokenizer
from llava.conversation import conv_templates
from llava.mm_utils import tokenizer_image_token
from tests.support.small_tokenizer import write_tokenizer
from visiondrop.reuse import session

QUESTION = "What is left of the red cat?"


@pytest.mark.parametrize("template", [name for name in conv_templates if name != "plain"])
def test_three_doors_ask_alike(template, tmp_path, monkeypatch):
    write_tokenizer(tmp_path, "model")
    tokenizer, picture = load_tokenizer(tmp_path), Image.new("RGB", (8, 8))
    config = SimpleNamespace(conversation_template=template)

    evaluation = object.__new__(LlavaVisionDrop)
    evaluation.settings = ModelSettings(model="", conversation=template)
    wanted = tokenizer_image_token(evaluation._prompt(QUESTION, [picture]), tokenizer)
    assert wanted.count(-200) == 1

    monkeypatch.setattr(adapter, "process_images", lambda *_: torch.zeros(1, 3, 8, 8))
    loaded = adapter.Loaded(SimpleNamespace(config=config, device="cpu", dtype=torch.float32), tokenizer, None)
    assert loaded.inputs(picture, QUESTION)["input_ids"].tolist() == [wanted]

    before = []
    lay_out = SimpleNamespace(inputs=lambda ids, image, processor: before.extend(ids) or {})
    monkeypatch.setattr(session, "adapter_for", lambda model: lay_out)
    monkeypatch.setattr(session, "encode_prefix", lambda model, **inputs: None)
    model = torch.nn.Module()
    model.config = config
    encoded = visiondrop.encode(model, picture, tokenizer=tokenizer)
    assert [*before, -200, *encoded._ids(QUESTION)] == wanted


@pytest.mark.parametrize(
    "text, wanted",
    [
        ("Is it red?\nAnswer the question using a single word or phrase.", "Is it red?"),
        ("<image>\nIs it red?", "Is it red?"),
        (
            "A or B?\nA. a\nB. b\nAnswer with the option's letter from the given choices directly.",
            "A or B?\nA. a\nB. b",
        ),
        ("Answer with care: is it red?", "Answer with care: is it red?"),
    ],
)
def test_a_method_that_reads_the_question_gets_no_instruction(text, wanted):
    assert bare(text) == wanted


def test_evaluation_hands_each_picture_its_question():
    """Two questions, the first about two pictures; without pictures nothing is handed over."""
    evaluation, told = object.__new__(LlavaVisionDrop), []
    evaluation.handle = SimpleNamespace(questions=lambda texts: told.append(texts))
    requests = [
        SimpleNamespace(args=[text]) for text in ("One?", "Two?\nAnswer the question using a single word or phrase.")
    ]
    evaluation._questions(requests, [SimpleNamespace(images=[1, 2]), SimpleNamespace(images=[3])])
    assert told == [["One?", "One?", "Two?"]]
    with evaluation._questions(requests[:1], [SimpleNamespace(images=[])]):
        assert len(told) == 1
