"""Prompts, ids and pixels of `llava/`, each against a restatement that shares no code with it."""

import io
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image, ImageFile
from transformers.models.llava.image_processing_pil_llava import LlavaImageProcessorPil

from llava.checkpoints.tokenizer import load_tokenizer
from llava.constants import DEFAULT_IMAGE_TOKEN, IMAGE_TOKEN_INDEX
from llava.conversation import conv_templates
from llava.mm_utils import (
    KeywordsStoppingCriteria,
    expand2square,
    get_model_name_from_path,
    open_image,
    process_images,
    tokenizer_image_token,
)
from llava.model.builder import CLIPImageProcessorPil
from llava.prompts import prompt_of, template_of
from tests.support.checkpoints import CLIP_MEAN, CLIP_STD
from tests.support.small_tokenizer import raw_sentencepiece, write_tokenizer
from visiondrop.errors import VisionDropError
from visiondrop.reuse import session

VICUNA = (
    "A chat between a curious user and an artificial intelligence assistant. "
    "The assistant gives helpful, detailed, and polite answers to the user's questions."
)
LLAVA_V1 = VICUNA.replace("user", "human")
NO_PREFIX = b"\x1a\x02\x18\x00"  # appended to a SentencePiece model: add_dummy_prefix = false


class Config:
    """Stands for a model's config."""

    def __init__(self, image_aspect_ratio):
        self.image_aspect_ratio = image_aspect_ratio


# Prompts --------------------------------------------------------------------------------------------------------------


def conversation(template, *turns):
    conv = conv_templates[template].copy()
    for i, turn in enumerate(turns):
        conv.append_message(conv.roles[i % 2], turn)
    return conv


@pytest.mark.parametrize(
    "template, turns, expected",
    [
        ("vicuna_v1", ("<image>\nWhat?", None), VICUNA + " USER: <image>\nWhat? ASSISTANT:"),
        ("v1", ("<image>\nWhat?", None), VICUNA + " USER: <image>\nWhat? ASSISTANT:"),
        ("vicuna_v1", ("Hi", "Ho", "So?", None), VICUNA + " USER: Hi ASSISTANT: Ho</s>USER: So? ASSISTANT:"),
        ("vicuna_v1", ("Hi", ""), VICUNA + " USER: Hi ASSISTANT:"),
        ("llava_v1", ("Hi", None), LLAVA_V1 + " USER: Hi ASSISTANT:"),
        ("plain", ("<image>", "A cat."), "<image>\nA cat."),
        (
            "llava_llama_2",
            ("Hi", "Ho", "So?", None),
            "[INST] <<SYS>>\nYou are a helpful language and vision assistant. You are able to understand the visual "
            "content that the "
            "user provides, and assist the user with a variety of tasks using natural language.\n<</SYS>>\n\nHi "
            "[/INST] Ho </s>"
            "<s>[INST] So? [/INST]",
        ),
        (
            "mistral_instruct",
            ("<image>\nHi", "Ho", "So?", None),
            "[INST] <image>\nHi [/INST] Ho </s>[INST] So? [/INST]",
        ),
        (
            "chatml_direct",
            ("<image>\nHi", "Ho", "So?", None),
            "<|im_start|>system\nAnswer the questions.<|im_end|><|im_start|>user\n<image>\nHi<|im_end|>"
            "<|im_start|>assistant\nHo<|im_end|><|im_start|>user\nSo?<|im_end|><|im_start|>assistant\n",
        ),
        (
            "llava_llama_3",
            ("<image>\nHi ", None),
            "<|start_header_id|>system<|end_header_id|>\n\nYou are a helpful language and vision assistant. You are "
            "able to understand the visual content that the user provides, and assist the user with a variety of tasks "
            "using natural language.<|eot_id|><|start_header_id|>user<|end_header_id|>\n\n<image>\nHi<|eot_id|>"
            "<|start_header_id|>assistant<|end_header_id|>\n\n",
        ),
    ],
)
def test_prompt_strings(template, turns, expected):
    assert conversation(template, *turns).get_prompt() == expected


@pytest.mark.parametrize(
    "fields, template",
    [
        ({"vocab_size": 32_000}, "vicuna_v1"),
        ({"vocab_size": 32_064, "model_type": "mistral"}, "mistral_instruct"),
        ({"vocab_size": 64_000}, "chatml_direct"),
        ({"vocab_size": 64_064}, "chatml_direct"),
        ({"vocab_size": 128_320}, "llava_llama_3"),
        ({"vocab_size": 128_256, "conversation_template": "llava_v1"}, "llava_v1"),
    ],
)
def test_the_template_follows_the_checkpoint(fields, template):
    own = SimpleNamespace(**fields)
    hub = SimpleNamespace(
        conversation_template=fields.pop("conversation_template", None), text_config=SimpleNamespace(**fields)
    )
    assert template_of(own) == template_of(hub) == template
    expected = conversation(template, "<image>\nWhat?", None).get_prompt()
    assert prompt_of(own, "What?") == prompt_of(hub, "What?") == expected


def test_an_unknown_template_is_named():
    with pytest.raises(VisionDropError, match="'vicuna' in the model.*vicuna_v1"):
        template_of(SimpleNamespace(conversation_template="vicuna", vocab_size=1))


@pytest.mark.parametrize("template", [name for name in conv_templates if name != "plain"])
@pytest.mark.parametrize("hub", [False, True])
def test_encode_asks_the_same_ids_as_a_whole_prompt(template, hub, tmp_path, monkeypatch):
    write_tokenizer(tmp_path, "model")
    tokenizer, seen = load_tokenizer(tmp_path), {}
    model = torch.nn.Module()
    model.config = (
        SimpleNamespace(conversation_template=template, text_config=SimpleNamespace(vocab_size=1))
        if hub
        else SimpleNamespace(conversation_template=template)
    )

    class Adapter:
        def inputs(self, ids, image, processor):
            seen["before"] = ids
            return {}

    monkeypatch.setattr(session, "adapter_for", lambda model: Adapter())
    monkeypatch.setattr(session, "encode_prefix", lambda model, **inputs: None)
    found = session.encode(model, None, tokenizer=tokenizer)
    whole = conversation(template, "<image>\nWhat is red?", None).get_prompt()
    ids = [*seen["before"], IMAGE_TOKEN_INDEX, *found._ids("What is red?")]
    assert ids == tokenizer_image_token(whole, tokenizer)


def test_copies_do_not_share_turns():
    conversation("vicuna_v1", "Hi", None)
    first = conv_templates["vicuna_v1"].copy()
    first.append_message(first.roles[0], "Hi")
    second = first.copy()
    second.append_message(second.roles[1], None)
    assert conv_templates["vicuna_v1"].messages == []
    assert len(first.messages) == 1 and len(second.messages) == 2


def test_wrong_turns_are_refused():
    with pytest.raises(VisionDropError, match="<image>"):
        conversation("vicuna_v1", ("Hi", "an image", "Pad"))
    with pytest.raises(VisionDropError, match="begin with"):
        conversation("llava_llama_2", None).get_prompt()


# Ids ------------------------------------------------------------------------------------------------------------------


@pytest.fixture(params=["model", "json"])
def tokenizer_folder(request, tmp_path):
    write_tokenizer(tmp_path, request.param)
    return tmp_path, request.param


PROMPTS = [
    conversation("vicuna_v1", "<image>\nWhat is left of the red cat?", None).get_prompt(),
    conversation(
        "vicuna_v1", "<image> <image>\nWhich one?", None
    ).get_prompt(),  # lmms-eval's form: a piece that is one space
    "<image>\nA red square.\n",
    "What?<image><image>",
    "No image  at all,   but caf\u00e9 \u6f22\u5b57 \U0001f642 and\ttabs",
    "<image>",
    "",
]


@pytest.mark.parametrize("prompt", PROMPTS)
def test_ids_equal_raw_sentencepiece(tokenizer_folder, prompt):
    tokenizer, raw = load_tokenizer(tokenizer_folder[0]), raw_sentencepiece()
    expected = [1]
    for i, piece in enumerate(prompt.split("<image>")):
        expected += ([-200] if i else []) + raw.encode(piece)
    ids = tokenizer_image_token(prompt, tokenizer)
    assert ids == expected
    tensor = tokenizer_image_token(prompt, tokenizer, IMAGE_TOKEN_INDEX, return_tensors="pt")
    assert tensor.dtype == torch.long and tensor.tolist() == expected


@pytest.mark.parametrize("legacy", [None, True, False])
@pytest.mark.parametrize(
    "segments", [["Hi", "</s>", "USER: no"], ["Hi", "</s>", " no"], ["</s>", "Hi"], [" ", "</s>", "x"]]
)
def test_text_after_special_tokens_follows_the_legacy_flag(tmp_path, segments, legacy):
    raw, bare = raw_sentencepiece(), raw_sentencepiece()
    bare.LoadFromSerializedProto(raw.serialized_model_proto() + NO_PREFIX)
    expected = [1]
    for i, segment in enumerate(segments):
        inner = bare if legacy is False and i else raw
        expected += [2] if segment == "</s>" else inner.encode(segment)
    settings = {} if legacy is None else {"legacy": legacy}
    for kind in ("model", "json"):
        folder = tmp_path / kind
        folder.mkdir()
        write_tokenizer(folder, kind, **settings)
        assert load_tokenizer(folder)("".join(segments)).input_ids == expected, kind


def test_no_begin_token_is_doubled_or_lost(tmp_path):
    write_tokenizer(tmp_path, "model", add_bos_token=False)
    tokenizer, raw = load_tokenizer(tmp_path), raw_sentencepiece()
    assert tokenizer_image_token("a<image>b", tokenizer) == [*raw.encode("a"), -200, *raw.encode("b")]


def test_answers_decode_as_sentencepiece_does(tokenizer_folder):
    tokenizer, raw = load_tokenizer(tokenizer_folder[0]), raw_sentencepiece()
    texts = ["red cat", "A. caf\u00e9 \U0001f642", "yes\nno", "two  spaces"]
    rows = [[1, *raw.encode(text), 2, 0, 0] for text in texts]
    assert tokenizer.batch_decode(rows, skip_special_tokens=True) == texts
    assert tokenizer.batch_decode(torch.tensor(rows[:1]), skip_special_tokens=True) == texts[:1]
    assert tokenizer.decode(rows[0][:-2]) in ("<s>red cat</s>", "<s> red cat</s>")
    assert tokenizer.encode("red", add_special_tokens=False) == raw.encode("red")


def test_padding_settings(tokenizer_folder):
    folder, _ = tokenizer_folder
    tokenizer = load_tokenizer(folder)
    assert (tokenizer.pad_token, tokenizer.pad_token_id, tokenizer.eos_token_id, tokenizer.bos_token_id) == (
        "<unk>",
        0,
        2,
        1,
    )
    assert tokenizer.padding_side == "right"  # as tokenizer_config.json says
    (folder / "tokenizer_config.json").unlink()
    tokenizer = load_tokenizer(folder)
    assert tokenizer.padding_side == "left" and tokenizer.pad_token_id == 0
    assert tokenizer("red").input_ids == [1, *raw_sentencepiece().encode("red")]


def test_a_saved_tokenizer_loads_again(tokenizer_folder, tmp_path):
    tokenizer = load_tokenizer(tokenizer_folder[0])
    tokenizer.save_pretrained(tmp_path / "again")
    again = load_tokenizer(tmp_path / "again")
    assert all(tokenizer_image_token(p, again) == tokenizer_image_token(p, tokenizer) for p in PROMPTS)


def test_tokenizer_errors(tmp_path):
    with pytest.raises(VisionDropError, match="tokenizer.model nor tokenizer.json"):
        load_tokenizer(tmp_path)
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(VisionDropError, match="download"):
        load_tokenizer(tmp_path)
    (tmp_path / "tokenizer.model").write_bytes(b"not a model")
    with pytest.raises(VisionDropError, match="tokenizer.model"):
        load_tokenizer(tmp_path)
    with pytest.raises(VisionDropError, match="'np'"):
        tokenizer_image_token("a", None, return_tensors="np")


def test_model_names():
    assert get_model_name_from_path("liuhaotian/llava-v1.5-7b/") == "llava-v1.5-7b"
    assert get_model_name_from_path("/runs/llava-mine/checkpoint-50") == "llava-mine_checkpoint-50"


def test_keywords_stop_new_text_only(tmp_path):
    write_tokenizer(tmp_path)
    tokenizer, raw = load_tokenizer(tmp_path), raw_sentencepiece()
    prompt, red, cat, stop = [1, *raw.encode("red cat")], raw.encode("red"), raw.encode("cat"), [2]
    criterion = KeywordsStoppingCriteria(["cat", "</s>"], tokenizer, torch.tensor([prompt]))
    rows = torch.tensor([prompt + red[:1], prompt + red[:1]])
    assert criterion(rows, None).tolist() == [False, False]  # the "cat" of the prompt does not count
    rows = torch.tensor([prompt + red[:1] + stop, prompt + red[:1] + red[:1]])
    assert criterion(rows, None).tolist() == [True, False]
    rows = torch.cat([rows, torch.tensor([[0] * len(cat), cat])], dim=1)
    assert criterion(rows, None).tolist() == [True, True]
    assert criterion(torch.tensor([prompt + red[:1]]), None).tolist() == [False]  # a new call of generate


# Pixels ---------------------------------------------------------------------------------------------------------------

SIZES = [
    (336, 336),
    (640, 480),
    (480, 640),
    (1000, 37),
    (7, 900),
    (1, 50),
    (50, 1),
    (2, 1),
    (3, 2),
    (3, 3),
    (337, 335),
    (224, 224),
]
SIDE = 336


def picture(size, mode="RGB", seed=0):
    channels = {"RGB": 3, "L": 1, "CMYK": 4, "RGBA": 4, "LA": 2}[mode]
    array = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], channels), dtype=np.uint8)
    return Image.fromarray(array[..., 0] if channels == 1 else array, mode)


@pytest.fixture(scope="module")
def processor():
    return CLIPImageProcessorPil(size={"shortest_edge": SIDE}, crop_size={"height": SIDE, "width": SIDE})


def restated_pixels(image):
    """The original's arithmetic in numpy: a square of the mean colour, PIL's bicubic resize, /255, normalise."""
    array = np.asarray(image)
    height, width = array.shape[:2]
    side = max(height, width)
    square = np.empty((side, side, 3), np.uint8)
    square[:] = [int(255 * mean) for mean in CLIP_MEAN]
    assert square[0, 0].tolist() == [122, 116, 104]
    top, left = (side - height) // 2, (side - width) // 2
    square[top : top + height, left : left + width] = array
    resized = np.asarray(Image.fromarray(square).resize((SIDE, SIDE), Image.Resampling.BICUBIC))
    scaled = (resized.astype(np.float64) * (1 / 255)).astype(np.float32)
    return ((scaled - np.float32(CLIP_MEAN)) / np.float32(CLIP_STD)).transpose(2, 0, 1)


@pytest.mark.parametrize("size", SIZES)
def test_padded_pixels_are_bit_identical(processor, size):
    image = picture(size)
    pixels = process_images([image], processor, Config("pad"))
    assert pixels.shape == (1, 3, SIDE, SIDE) and pixels.dtype == torch.float32
    library = LlavaImageProcessorPil(do_pad=True, size=processor.size, crop_size=processor.crop_size)
    assert torch.equal(pixels, library(image, return_tensors="pt")["pixel_values"])
    np.testing.assert_array_equal(pixels[0].numpy(), restated_pixels(image))


def test_several_images_come_in_order(processor):
    images = [picture(size, seed=i) for i, size in enumerate([(40, 30), (30, 40), (336, 336)])]
    together = process_images(images, processor, Config("pad"))
    assert together.shape == (3, 3, SIDE, SIDE)
    for image, pixels in zip(images, together):
        assert torch.equal(process_images([image], processor, Config("pad"))[0], pixels)


@pytest.mark.parametrize("ratio", [None, "square", "original"])
def test_without_padding_the_centre_is_cropped(processor, ratio):
    image = picture((400, 300))
    height, width = SIDE, 400 * SIDE // 300
    resized = np.asarray(image.resize((width, height), Image.Resampling.BICUBIC))[:, (width - SIDE) // 2 :][:, :SIDE]
    expected = process_images([Image.fromarray(resized)], processor, Config("pad"))
    assert torch.equal(process_images([image], processor, Config(ratio)), expected)


def test_expand2square_keeps_square_images_and_modes():
    square = picture((5, 5))
    assert expand2square(square, (1, 2, 3)) is square
    tall = expand2square(picture((2, 5), "L"), 7)
    assert tall.mode == "L" and tall.size == (5, 5) and np.asarray(tall)[:, 0].tolist() == [7] * 5


def test_unknown_aspect_ratios_are_refused(processor):
    with pytest.raises(VisionDropError, match="'stretch'.*'square'"):
        process_images([picture((4, 4))], processor, Config("stretch"))


def test_anyres_stacks_equal_numbers_of_crops(processor):
    config = Config("anyres")
    config.image_grid_pinpoints = [[336, 672], [672, 672]]
    tall, square = picture((300, 600)), picture((600, 600))
    assert process_images([tall, tall], processor, config).shape == (2, 3, 3, SIDE, SIDE)
    assert [len(crops) for crops in process_images([tall, square], processor, config)] == [3, 5]


@pytest.mark.parametrize("images", [[], ["photo.jpg"], [np.zeros((4, 4, 3), np.uint8)], [Image.new("RGB", (1, 1))]])
def test_what_is_no_picture_is_refused(processor, images):
    with pytest.raises(VisionDropError):
        process_images(images, processor, Config("pad"))


# Files ----------------------------------------------------------------------------------------------------------------


def save(image, path, **options):
    image.save(path, **options)
    return path


def test_every_mode_opens_as_rgb(tmp_path, processor):
    grey, cmyk, alpha = picture((20, 10), "L"), picture((20, 10), "CMYK"), picture((20, 10), "RGBA")
    palette = picture((20, 10)).quantize(16)
    deep = Image.fromarray(np.asarray(grey).astype(np.uint16) * 257)  # 16-bit greys
    cases = {
        "grey.png": (grey, np.stack([np.asarray(grey)] * 3, -1)),
        "deep.png": (deep, np.stack([np.asarray(grey)] * 3, -1)),
        "cmyk.tiff": (cmyk, np.asarray(cmyk.convert("RGB"))),
        "palette.png": (
            palette,
            np.asarray(palette.getpalette()[: 16 * 3], np.uint8).reshape(-1, 3)[np.asarray(palette)],
        ),
        "alpha.png": (alpha, np.asarray(alpha)[..., :3]),
        "grey_alpha.png": (picture((20, 10), "LA"), np.stack([np.asarray(picture((20, 10), "LA"))[..., 0]] * 3, -1)),
        "bits.png": (grey.convert("1"), np.stack([np.asarray(grey.convert("1")) * np.uint8(255)] * 3, -1)),
    }
    for name, (image, expected) in cases.items():
        opened = open_image(save(image, tmp_path / name))
        assert opened.mode == "RGB", name
        np.testing.assert_array_equal(np.asarray(opened), expected, err_msg=name)
        pixels = process_images([image], processor, Config("pad"))
        assert torch.equal(pixels, process_images([opened], processor, Config("pad"))), name


@pytest.mark.parametrize(
    "orientation, turn",
    [(1, None), (3, Image.Transpose.ROTATE_180), (6, Image.Transpose.ROTATE_270), (8, Image.Transpose.ROTATE_90)],
)
def test_exif_orientation_is_applied(tmp_path, orientation, turn):
    image = picture((20, 10))
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = save(image, tmp_path / "photo.png", exif=exif)
    upright = image if turn is None else image.transpose(turn)
    for source in (path, str(path), path.read_bytes(), io.BytesIO(path.read_bytes()), Image.open(path)):
        opened = open_image(source)
        assert opened.size == upright.size
        np.testing.assert_array_equal(np.asarray(opened), np.asarray(upright))


@pytest.mark.parametrize("tolerant", [False, True])
def test_damaged_files_give_one_sentence(tolerant, tmp_path, monkeypatch):
    # lmms-eval's tasks switch PIL to filling truncated images, for the whole process.
    monkeypatch.setattr(ImageFile, "LOAD_TRUNCATED_IMAGES", tolerant)
    whole = save(picture((200, 200)), tmp_path / "whole.jpg").read_bytes()
    (tmp_path / "cut.jpg").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "text.jpg").write_text("This is no image.")
    (tmp_path / "empty.png").write_bytes(b"")
    png = bytearray(save(picture((64, 64)), tmp_path / "whole.png").read_bytes())
    png[100:140] = b"\x00" * 40
    (tmp_path / "flipped.png").write_bytes(png)
    save(Image.new("RGB", (1, 1)), tmp_path / "dot.png")
    for name in ("cut.jpg", "text.jpg", "empty.png", "flipped.png", "dot.png", "absent.png", "."):
        with pytest.raises(VisionDropError) as caught:
            open_image(tmp_path / name)
        assert "\n" not in str(caught.value) and str(caught.value).endswith("."), name
        assert name == "." or name in str(caught.value)
    with pytest.raises(VisionDropError, match="image data"):
        open_image(whole[:50])


def test_what_lmms_eval_imports_is_there():
    assert DEFAULT_IMAGE_TOKEN == "<image>" and IMAGE_TOKEN_INDEX == -200
    assert {"vicuna_v1", "v1", "llava_v1", "plain", "llava_llama_2"} <= conv_templates.keys()
