"""Prompts whose placeholders and pictures do not match: one sentence at every door, natively and on hub classes."""

from types import SimpleNamespace

import pytest
import torch
from PIL import Image

import visiondrop
from eval.models.llava import LlavaVisionDrop
from eval.settings import ModelSettings
from tests.eval.test_checkpoint import write_answering_checkpoint
from tests.support import models, video_models
from visiondrop.__main__ import main
from visiondrop.errors import VisionDropError

LAYERS = 4
BUDGET = 200


@pytest.fixture(scope="module")
def native():
    return models.native(LAYERS)


@pytest.fixture(scope="module")
def hub():
    return models.hub(LAYERS)


@pytest.mark.parametrize("way", ["forward", "generate"])
@pytest.mark.parametrize(
    ("placeholders", "pictures", "message"),
    [
        (0, 1, "1 images for 0 <image>"),
        (2, 1, "1 images for 2 <image>"),
        (1, 2, "2 images for 1 <image>"),
        (1, 0, "0 images"),
    ],
)
def test_native_calls(native, way, placeholders, pictures, message):
    ids = torch.tensor([[1, *[-200] * placeholders, 7, 8]])
    images = models.pixels(*range(pictures)) if pictures else None
    call = native.generate if way == "generate" else native
    more = {"max_new_tokens": 1} if way == "generate" else {}
    with visiondrop.apply(native, tokens=BUDGET), pytest.raises(VisionDropError, match=message):
        call(ids, images=images, **more)


@pytest.mark.parametrize("way", ["forward", "generate"])
@pytest.mark.parametrize(
    ("placeholders", "pictures", "message"),
    [
        (0, 1, "0 image placeholder tokens for 1 images"),
        (1152, 1, "1152 image placeholder tokens for 1 images|contiguous placeholder"),
        (576, 2, "576 image placeholder tokens for 2 images"),
        (576, 0, "576 image placeholder tokens .* and no picture"),
        (600, 1, "placeholder"),
    ],
)
def test_hub_calls(hub, way, placeholders, pictures, message):
    ids = torch.tensor([[1, *[models.HUB_IMAGE_ID] * placeholders, 7, 8]])
    pixels = {"pixel_values": models.pixels(*range(pictures))} if pictures else {}
    with visiondrop.apply(hub, tokens=BUDGET), pytest.raises(VisionDropError, match=message) as error:
        hub.generate(input_ids=ids, max_new_tokens=1, **pixels) if way == "generate" else hub(input_ids=ids, **pixels)
    assert "\n" not in str(error.value)


def test_a_hub_conversation_goes_on_without_its_pictures(hub):
    """The placeholders of an earlier turn are in the cache: nothing is refused."""
    ids = torch.tensor([models.to_hub(models.prompt())])
    with visiondrop.apply(hub, tokens=BUDGET):
        first = hub.generate(
            input_ids=ids,
            pixel_values=models.pixels(0),
            max_new_tokens=2,
            do_sample=False,
            return_dict_in_generate=True,
        )
        longer = torch.cat([first.sequences, torch.tensor([[9, 9]])], dim=1)
        cache = first.past_key_values
        again = hub.generate(input_ids=longer, past_key_values=cache, max_new_tokens=2, do_sample=False)
    assert again.shape[1] == longer.shape[1] + 2


def test_both_kinds_of_placeholder_of_a_hub_model_are_looked_for():
    model = video_models.hub()
    for token in (model.config.image_token_id, model.config.video_token_id):
        ids = torch.tensor([[1, token, token, 7, 8]])
        with (
            visiondrop.apply(model, tokens=64),
            pytest.raises(VisionDropError, match=rf"id {token}\) and no picture"),
        ):
            model(input_ids=ids)
        assert model(input_ids=ids).logits.shape[1] == 5  # the stock model takes them for words


class Words:
    """A tokenizer of one id per word."""

    bos_token_id, eos_token_id, pad_token_id = 1, 2, 0

    def __call__(self, text: str) -> SimpleNamespace:
        return SimpleNamespace(input_ids=[1, *(3 + len(word) for word in text.split())])

    def batch_decode(self, ids, **_):
        return [str(row.tolist()) for row in ids]


@pytest.mark.parametrize("front", ["native", "hub"])
def test_a_session(native, hub, front):
    model = {"native": native, "hub": hub}[front]
    session = visiondrop.encode(model, models.pixels(0), tokenizer=Words(), method="visiondrop", tokens=BUDGET)
    with pytest.raises(VisionDropError, match="spells the placeholder <image>"):
        session.ask(["What is it?", "What does <image> mean?"])
    token = -200 if front == "native" else models.HUB_IMAGE_ID
    with pytest.raises(VisionDropError, match=f"ids hold the image placeholder {token}"):
        session.ask([[5, token, 6]])
    for prompt in ("no picture {question}", "<image> and <image> {question}", "{question} <image>"):
        with pytest.raises(VisionDropError, match="it must hold one <image>"):
            visiondrop.encode(model, models.pixels(0), tokenizer=Words(), prompt=prompt)
    visiondrop.apply(model, "none").remove()


def test_ask_refuses_before_anything_is_loaded(tmp_path, capsys):
    Image.new("RGB", (8, 8)).save(tmp_path / "photo.png")
    command = ["ask", "--image", str(tmp_path / "photo.png"), "--tokens", "64", "--model", "not/loaded"]
    assert main([*command, "--question", "Is <image> red?"]) == 2
    assert "spells the placeholder <image>" in capsys.readouterr().err


def test_the_evaluation_names_the_question(tmp_path):
    write_answering_checkpoint(tmp_path / "words")
    lm = LlavaVisionDrop(ModelSettings(model=str(tmp_path / "words"), device="cpu", method="none"))
    lm.task_dict = {"toy": {"test": list(range(3))}}

    def asked(text, count):
        pictures = [Image.new("RGB", (20, 20))] * count
        return SimpleNamespace(args=(text, {"max_new_tokens": 1}, lambda doc: pictures, 0, "toy", "test"))

    for text, count, found in (
        ("compare <image> with <image>", 1, 2),
        ("<image> what?", 2, 1),
        ("<image> what?", 0, 1),
    ):
        with pytest.raises(VisionDropError, match=f"prompt .*{found} placeholders <image> for {count} pictures"):
            lm.generate_until([asked(text, count)])
    assert lm.generate_until([asked("what is this ?", 1)]) == lm.generate_until([asked("<image>\nwhat is this ?", 1)])
