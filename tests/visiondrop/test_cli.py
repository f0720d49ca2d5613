"""A person's first minutes: `ask`, its picture, and the sentences for what is missing."""

from importlib import metadata

import pytest
from PIL import Image, ImageDraw

from llava import adapter
from tests.support.checkpoints import write_original
from visiondrop import _versions
from visiondrop.__main__ import main
from visiondrop.demo import ask as demo
from visiondrop.demo.checks import check_output
from visiondrop.demo.show import CELL, MARGIN
from visiondrop.errors import VisionDropError
from visiondrop.precision import precision


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    return str(write_original(tmp_path_factory.mktemp("checkpoint"), layers=8))


@pytest.fixture
def photo(tmp_path):
    image = Image.new("RGB", (320, 200), (90, 140, 90))
    ImageDraw.Draw(image).ellipse((40, 40, 120, 120), fill=(200, 40, 40))
    image.save(tmp_path / "photo.png")
    return str(tmp_path / "photo.png")


def ask(*arguments: str) -> int:
    return main(["ask", "--question", "What is red?", "--max-new-tokens", "3", *arguments])


def test_ask_answers_and_draws(checkpoint, photo, tmp_path, capsys):
    out = tmp_path / "kept.png"
    assert ask("--image", photo, "--tokens", "64", "--model", checkpoint, "--show", str(out)) == 0
    text = capsys.readouterr().out
    assert "mean 64.00 tokens per layer" in text and f"new tokens on cpu in {precision()[1]}" in text
    picture = Image.open(out)
    side = 24 * CELL
    assert picture.size == (5 * side + 4 * 8, side + MARGIN)  # the input, the encoder stage, three layers
    dark = [
        sum(v < 60 for v in picture.crop((i * (side + 8), MARGIN, i * (side + 8) + side, side)).convert("L").tobytes())
        for i in range(5)
    ]
    assert dark[0] == 0 and dark[1] < dark[2] < dark[3] < dark[4]  # ever more patches are dimmed


@pytest.mark.parametrize(
    "arguments, words",
    [
        (["--image", "absent.png", "--tokens", "64"], "absent.png"),
        (["--tokens", "64", "--method", "visiondop"], "did you mean 'visiondrop'"),
        (["--tokens", "64", "--option", "merge"], "name=value"),
        (["--tokens", "64", "--show", "no/such/folder/kept.png"], "writable folder"),
        (["--tokens", "64", "--model", "no/such/folder"], "no/such/folder"),
        (["--tokens", "900"], "1 … 576"),
    ],
)
def test_each_mistake_is_one_sentence(arguments, words, checkpoint, photo, capsys):
    given = dict(zip(arguments[::2], arguments[1::2]))
    complete = {"--image": photo, "--model": checkpoint, **given}
    assert ask(*[part for pair in complete.items() for part in pair]) == 2
    message = capsys.readouterr().err.strip().splitlines()[-1]
    assert message.startswith("error: ") and words in message


BEFORE_LOADING = [
    (["--show", "kept.xyz"], "'.xyz'"),
    (["--show", "kept"], "''; use .png"),
    (["--show", "kept.xbm"], "no colour picture"),  # PIL writes it in black and white only
    (["--show", "no/such/folder/kept.png"], "writable folder"),
    (["--image", "absent.png"], "absent.png"),
    (["--method", "fastvv"], "did you mean 'fastv'"),
    (["--option", "merg=off"], "no option 'merg'"),
    (["--option", "merge=perhaps"], "merge"),
    (["--tokens", "900"], "1 … 576"),
    (["--tokens", "12", "--method", "fastv"], "not reachable"),
    (["--question", "  "], "what is to be asked"),
    (["--max-new-tokens", "0"], "at least 1"),
    (["--model", "no/such/folder"], "no/such/folder"),
]


@pytest.mark.parametrize("arguments, words", BEFORE_LOADING)
def test_whatever_can_be_checked_is_checked_before_the_model_is_loaded(
    arguments, words, checkpoint, photo, capsys, monkeypatch
):
    monkeypatch.setattr(adapter, "load", lambda *_: pytest.fail("the model was loaded"))
    given = {"--image": photo, "--model": checkpoint, "--tokens": "64", "--question": "What is red?"}
    given |= dict(zip(arguments[::2], arguments[1::2]))
    assert main(["ask", *[part for pair in given.items() for part in pair]]) == 2
    message = capsys.readouterr().err.strip().splitlines()[-1]
    assert message.startswith("error: ") and words in message


def test_a_python_caller_s_dtype_is_checked_too(checkpoint, photo):
    with pytest.raises(VisionDropError, match="'float8': .*float16, bfloat16"):
        demo.ask(photo, "What?", checkpoint, "visiondrop", 64, {}, dtype="float8")


@pytest.mark.parametrize("ending", ["png", "PNG", "jpg", "webp", "pdf", "bmp", "tiff", "gif"])
def test_endings_that_can_be_written_pass(ending, tmp_path):
    check_output(str(tmp_path / f"kept.{ending}"))
    assert not list(tmp_path.iterdir())  # tried in memory


@pytest.mark.parametrize(
    "version, accepted", [("4.57.6", False), ("5.16.2", False), ("5.17.0", True), ("5.23.4", True)]
)
def test_old_transformers_are_refused_in_one_sentence(version, accepted, monkeypatch):
    real = metadata.version
    monkeypatch.setattr(_versions.metadata, "version", lambda name: version if name == "transformers" else real(name))
    if accepted:
        _versions.check_versions()
    else:
        with pytest.raises(ImportError, match=f"found {version}; run: pip install"):
            _versions.check_versions()


def test_a_broken_torchvision_is_named(monkeypatch):
    import builtins

    real = builtins.__import__

    def broken(name, *arguments, **keywords):
        if name == "torchvision":
            raise RuntimeError("operator torchvision::nms does not exist")
        return real(name, *arguments, **keywords)

    monkeypatch.setattr(_versions.metadata, "version", lambda name: "0.28.0")
    monkeypatch.setattr(builtins, "__import__", broken)
    with pytest.raises(ImportError, match="pip uninstall -y torchvision timm"):
        _versions.check_torchvision()
