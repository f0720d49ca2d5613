"""From files to answers: tiny checkpoints of the newer families in the hub's own layout, opened, asked and continued."""

import numpy as np
import pytest
import torch
from PIL import Image

import visiondrop
from tests.support import hub_folders
from visiondrop.errors import UnsupportedError, VisionDropError
from visiondrop.families import loader
from visiondrop.families.loading import HubLoaded
from visiondrop.families.processors import load_processor
from visiondrop.reuse.prefix import next_logits

QUESTION = "what is on the table?"


@pytest.fixture(scope="module", params=list(hub_folders.FAMILIES))
def folder(request, tmp_path_factory):
    path = tmp_path_factory.mktemp(request.param)
    hub_folders.save(request.param, path)
    return str(path)


@pytest.fixture(scope="module")
def loaded(folder):
    return loader().load(folder, torch.float32)


def photo(seed: int = 0, size: tuple[int, int] = (90, 120)) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 255, (*size, 3), dtype=np.uint8))


def test_a_folder_is_opened_with_its_processor(loaded, folder):
    assert isinstance(loaded, HubLoaded) and not loaded.model.training
    shape = loader().shape_of(folder)
    with visiondrop.apply(loaded.model, "visiondrop", "25%") as handle:
        assert handle.plan.shape == shape
    answers = {}
    for tokens in ("100%", "40%"):
        with visiondrop.apply(loaded.model, "vispruner", tokens):
            new = loaded.generate(loaded.inputs(photo(), QUESTION), max_new_tokens=4, do_sample=False)
            answers[tokens] = loaded.text(new[0])
            assert new.shape == (1, 4)
    assert loaded.generate(loaded.inputs(photo(), QUESTION), max_new_tokens=4, do_sample=False).shape == (1, 4)


@pytest.mark.parametrize("method, tokens", [("none", None), ("visiondrop", "40%"), ("vispruner", "40%")])
def test_questions_on_one_picture_equal_questions_asked_alone(loaded, method, tokens):
    questions = [QUESTION, "a cat?", "how many red stars are on the table, two or three?"]
    with visiondrop.apply(loaded.model, method, tokens):
        alone, logits = [], []
        for question in questions:
            inputs = loaded.inputs(photo(1), question)
            alone.append(loaded.text(loaded.generate(inputs, max_new_tokens=5, do_sample=False)[0]))
            with torch.no_grad():
                logits.append(loaded.model(**inputs).logits[0, -1])
        session = visiondrop.encode(loaded.model, photo(1), processor=loaded.processor)
        loaded.generate(loaded.inputs(photo(2, (130, 60)), QUESTION), max_new_tokens=2)  # another prefill in between
        assert session.ask(questions, max_new_tokens=5) == alone
        assert (session.logits(questions) - torch.stack(logits)).abs().max() <= 3e-5
        assert next_logits(loaded.model, session.prefix, [[60, 61]]).shape[0] == 1


def test_what_does_not_fit_is_refused(loaded):
    with visiondrop.apply(loaded.model, "visiondrop", "40%"):
        with pytest.raises(VisionDropError, match="the processor brings them"):
            visiondrop.encode(loaded.model, photo(), processor=loaded.processor, tokenizer=loaded.tokenizer)
        with pytest.raises(UnsupportedError, match="processor="):
            visiondrop.encode(loaded.model, photo(), tokenizer=loaded.tokenizer, prompt="<image>{question}")
    with visiondrop.apply(loaded.model, "fastv", "60%"):
        with pytest.raises(UnsupportedError, match="reads the question"):
            visiondrop.encode(loaded.model, photo(), processor=loaded.processor)


def test_ask_from_the_command_line(folder, tmp_path, capsys):
    from visiondrop.__main__ import main

    photo().save(tmp_path / "photo.png")
    given = ["ask", "--image", str(tmp_path / "photo.png"), "--question", QUESTION, "--model", folder]
    assert main([*given, "--tokens", "40%", "--max-new-tokens", "3"]) in (0, None)
    out = capsys.readouterr().out
    assert "which is" in out and "new tokens on cpu" in out


def test_videos_without_torchvision_are_refused_with_the_mend(folder):
    from transformers.utils import is_torchvision_available

    if is_torchvision_available():
        pytest.skip("torchvision is installed")
    with pytest.raises(VisionDropError, match="pip install torchvision"):
        load_processor(folder)(text=["a"], videos=[np.zeros((2, 56, 56, 3))])
