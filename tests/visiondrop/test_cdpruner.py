"""CDPruner: the greedy choice against float64 loops, CLIP's text half, and where the question comes from."""

from pathlib import Path

import numpy as np
import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode
from transformers import CLIPTextConfig, CLIPTextModel

import visiondrop
from tests.support import clip, models
from visiondrop.methods.encoder import cdpruner
from visiondrop.plans import flops
from visiondrop.plans.shape import VisualShape
from visiondrop.tower.clip_text import ClipText
from visiondrop.tower.questions import Reader

CPU = torch.device("cpu")
TRACE = np.load(Path(__file__).parents[1] / "support" / "golden" / "traces" / "cdpruner_64_0.npz")
PROMPT = torch.tensor([models.prompt()])


def draw(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def largest_determinant(states: np.ndarray, weight: np.ndarray, count: int) -> list[int]:
    """By the definition: the pick that makes the determinant of the kernel largest."""
    unit = states / np.linalg.norm(states, axis=1, keepdims=True)
    kernel, picked = weight[:, None] * (unit @ unit.T) * weight[None], []
    while len(picked) < count:
        rest = [i for i in range(len(kernel)) if i not in picked]
        picked.append(max(rest, key=lambda i: np.linalg.det(kernel[np.ix_([*picked, i], [*picked, i])])))
    return picked


@pytest.mark.parametrize("count", [1, 2, 6])
def test_diverse(count):
    states, weight = draw(3, 30, 12), draw(3, 30, seed=1).abs() + 0.1
    wanted = [largest_determinant(s.double().numpy(), w.double().numpy(), count) for s, w in zip(states, weight)]
    assert cdpruner.diverse(states, weight, count).tolist() == wanted
    assert [cdpruner.diverse(s[None], w[None], count)[0].tolist() for s, w in zip(states, weight)] == wanted


def test_when_the_picks_span_everything_the_rest_is_taken_once():
    states = draw(2, 40, 6)  # rank 6
    picked = cdpruner.diverse(states, torch.ones(2, 40), 40)
    assert picked.sort(dim=1).values.tolist() == [list(range(40))] * 2
    assert torch.equal(picked[:, :6], cdpruner.diverse(states, torch.ones(2, 40), 6))  # choices are nested


def test_equal_patches_go_to_the_smallest_and_zero_ones_are_no_nan():
    states = draw(1, 5, 8).repeat(1, 2, 1)
    states[0, 3] = 0
    picked = cdpruner.diverse(states, torch.ones(1, 10), 10)[0].tolist()
    assert sorted(picked) == list(range(10)) and all(picked.index(i) < picked.index(i + 5) for i in (0, 1, 2, 4))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_states_are_compared_in_float32(dtype):
    states, weight = draw(2, 30, 12).to(dtype), torch.ones(2, 30)
    assert torch.equal(cdpruner.diverse(states, weight, 9), cdpruner.diverse(states.float(), weight, 9))


def test_relevance_is_scaled_over_all_units_of_a_picture_and_of_no_other():
    joint, text = draw(6, 20, 8), draw(2, 8, seed=1)
    text = (text / text.norm(dim=1, keepdim=True)).repeat_interleave(3, dim=0)
    found = cdpruner.relevance(joint, text, 3)
    for image in range(2):
        unit = joint[3 * image : 3 * image + 3].double()
        unlike = -(unit / unit.norm(dim=-1, keepdim=True)) @ text[3 * image].double()
        wanted = (unlike - unlike.min() + 1e-6) / (unlike.max() - unlike.min())
        assert (found[3 * image : 3 * image + 3] - wanted).abs().max() <= 1e-6
    flat = cdpruner.relevance(torch.ones(1, 20, 8), text[:1], 1)
    assert torch.equal(flat, torch.ones(1, 20))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return clip.folder(tmp_path_factory.mktemp("clip"))


def test_long_questions_are_cut_into_texts_of_their_own(folder):
    half = ClipText.load(str(folder), None, CPU)
    model = clip.model()
    for key in (0, "edge", "long"):
        ids = half.ids(clip.QUESTIONS[key])
        assert list(ids) == clip.text.text_ids(clip.QUESTIONS[key])
        rows, mask = (torch.from_numpy(x) for x in clip.text.segments(ids))
        states = model.text_projection(model.text_model(input_ids=rows, attention_mask=mask).pooler_output)
        wanted = torch.nn.functional.normalize(states, dim=-1).mean(dim=0)
        assert (half.embed([clip.QUESTIONS[key]])[0] - wanted).abs().max() <= 1e-6
    together = half.embed([clip.QUESTIONS[0], clip.QUESTIONS["long"], clip.text.text_ids(clip.QUESTIONS[0])])
    assert torch.equal(together[0], together[2])
    assert (ClipText.load(str(folder), None, CPU).embed([clip.QUESTIONS["long"]])[0] - together[1]).abs().max() <= 1e-6


@pytest.mark.parametrize("given", ["folder", "model", "pair", "default"])
def test_where_clip_comes_from(folder, given):
    native = models.native(2)
    native.config.mm_vision_tower = str(folder) if given == "default" else "openai/nowhere"
    from transformers import CLIPModel

    loaded = CLIPModel.from_pretrained(folder)
    what = {"folder": str(folder), "model": loaded, "pair": (clip.model(), clip.tokenizer), "default": None}[given]
    kept = []
    for _ in range(2):
        with visiondrop.apply(native, "cdpruner", tokens=64, report=True, clip=what) as handle:
            with handle.questions([clip.QUESTIONS[0]]):
                native(input_ids=PROMPT, images=models.pixels(0))
        kept.append(handle.report.stages[0].kept().tolist())
        assert handle.ledger.as_dict()["options"].get("clip") == (str(folder) if given == "folder" else None)
    assert kept == [TRACE["kept_grid"].tolist()] * 2


def test_what_cannot_be_had(folder, tmp_path):
    native = models.native(2)
    native.config.mm_vision_tower = None
    cases = [
        (dict(clip=str(tmp_path / "nowhere")), [clip.QUESTIONS[0]], "cannot be loaded from"),
        (dict(), [clip.QUESTIONS[0]], "does not say which CLIP"),
        (dict(clip=torch.nn.Linear(1, 1)), [clip.QUESTIONS[0]], "give a CLIPModel"),
        (dict(clip=clip.model()), [clip.QUESTIONS[0]], "without a tokenizer"),
        (dict(clip=str(folder)), [clip.QUESTIONS[0], clip.QUESTIONS[1]], "2 questions for 1 pictures"),
    ]
    for options, texts, words in cases:
        with visiondrop.apply(native, "cdpruner", tokens=64, **options) as handle, handle.questions(texts):
            with pytest.raises(visiondrop.VisionDropError, match=words):
                native(input_ids=PROMPT, images=models.pixels(0))
    with visiondrop.apply(native, "cdpruner", tokens=64, clip=str(folder)) as handle:
        with pytest.raises(visiondrop.VisionDropError, match="handle.questions.*tokenizer=tokenizer"):
            native(input_ids=PROMPT, images=models.pixels(0))
        for wrong in ("text", [], [""]):
            with pytest.raises(visiondrop.VisionDropError, match="give a list"), handle.questions(wrong):
                pass
    with pytest.raises(visiondrop.VisionDropError, match="not CLIP's"):
        visiondrop.plan("cdpruner", 64, shape=VisualShape(cls=False))


def test_every_picture_has_its_own_question_in_both_classes(folder):
    """In a batch, with beams, and in transformers' class, whose `generate` encodes pictures before its first pass."""
    native, hub, pictures = models.native(2), models.hub(2), models.pixels(0, 0, 1)
    texts = [clip.QUESTIONS[0], clip.QUESTIONS["long"], clip.QUESTIONS[3]]
    ids = PROMPT.expand(3, -1)
    wide = torch.tensor([models.to_hub(models.prompt())]).expand(3, -1)
    options = dict(max_new_tokens=2, do_sample=False)
    with visiondrop.apply(native, "cdpruner", tokens=64, report=True, clip=str(folder)) as handle:
        alone = []
        for text, picture in zip(texts, pictures):
            with handle.questions([text]):
                native(input_ids=PROMPT, images=picture[None])
            alone.append(handle.report.stages[0].kept().tolist())
        with handle.questions(texts):
            native.generate(ids, images=pictures, num_beams=2, **options)
        assert [handle.report.stages[0].kept(i).tolist() for i in range(3)] == alone
    with visiondrop.apply(hub, "cdpruner", tokens=64, report=True, clip=str(folder)) as handle, handle.questions(texts):
        for beams in (1, 2):
            hub.generate(input_ids=wide, pixel_values=pictures, num_beams=beams, **options)
            assert [handle.report.stages[0].kept(i).tolist() for i in range(3)] == alone
    assert alone[0] != alone[1]


def test_no_nan_where_the_official_code_has_one():
    """The golden projector spans 128 dimensions: at 192 tokens the original keeps 138 and computes with NaN."""
    native = models.native(2)
    options = dict(clip=(clip.model(), clip.tokenizer), report=True)
    with visiondrop.apply(native, "cdpruner", tokens=192, **options) as handle, handle.questions([clip.QUESTIONS[0]]):
        out = native(input_ids=PROMPT, images=models.pixels(0)).logits
        assert len(set(handle.report.stages[0].kept().tolist())) == 192 and torch.isfinite(out).all()


class Letters:
    """A tokenizer whose ids are characters."""

    def decode(self, ids):
        return "".join(map(chr, ids))


@pytest.mark.parametrize(
    "prompt, blocks, wanted",
    [
        ("A chat. USER: *\nWhat color? ASSISTANT:", [1], ["What color?"]),
        ("A chat. USER: *\nWhat color? ASSISTANT: Red</s>USER: And now? ASSISTANT:", [1], ["What color?"]),
        ("[INST] *\nWhat color? [/INST]", [1], ["What color?"]),
        ("<|im_start|>user\n*\nWhat color?<|im_end|><|im_start|>assistant\n", [1], ["What color?"]),
        ("USER: What color? *\n ASSISTANT:", [1], ["What color?"]),
        ("USER: * *\nSame? ASSISTANT:", [1, 1], ["Same?", "Same?"]),
        ("USER: ****\nWhat happens? ASSISTANT:", [4], ["What happens?"]),
        ("USER: *\nOne? ASSISTANT: no USER: *\nTwo? ASSISTANT:", [1, 1], ["One?", "Two?"]),
    ],
)
def test_questions_are_read_behind_the_picture(prompt, blocks, wanted):
    assert Reader(tokenizer=Letters()).read([[ord(c) for c in prompt]], {ord("*")}, blocks) == wanted


def test_prompts_of_several_rows_and_no_tokenizer():
    rows = [[ord(c) for c in text] for text in ("*One? ASSISTANT:", "no picture", "*Two?")]
    assert Reader(tokenizer=Letters()).read(rows, {ord("*")}, [1, 1]) == ["One?", "Two?"]
    assert Reader().read(rows, {ord("*")}, [1, 1]) == [None, None]


def test_flops_equal_the_counter():
    config = CLIPTextConfig(
        hidden_size=768,
        intermediate_size=3072,
        num_hidden_layers=12,
        num_attention_heads=12,
        attn_implementation="sdpa",
    )
    with FlopCounterMode(display=False) as counter, torch.device("meta"):
        CLIPTextModel(config)(input_ids=torch.zeros(1, 77, dtype=torch.long))
        torch.nn.Linear(768, 768, bias=False)(torch.empty(1, 768))
        torch.nn.Linear(1024, 768, bias=False)(torch.empty(576, 1024))
        torch.empty(576, 4096) @ torch.empty(4096, 576)
    loop = 576 * 64 * 64
    assert flops.question_guided(flops.LLAVA_7B, VisualShape(), 64) == counter.get_total_flops() + loop
    more = visiondrop.plan("cdpruner", 64).ledger().flops - visiondrop.plan("vispruner", 64).ledger().flops
    assert more / 1e9 == pytest.approx(38, abs=1)  # the page's count: projector on all rows, text half, similarities


def test_static_shapes_and_reuse_are_refused_with_the_reason(folder, caplog):
    native = models.native(2)
    options = dict(images=models.pixels(0), max_new_tokens=2, do_sample=False)
    with visiondrop.apply(native, "cdpruner", tokens=64, clip=str(folder), compile=True) as handle:
        with handle.questions([clip.QUESTIONS[0]]), caplog.at_level("WARNING"):
            assert native.generate(PROMPT, **options).shape == (1, 2)
        assert "the encoder stage reads the question" in caplog.text
        with pytest.raises(visiondrop.VisionDropError, match="question"):
            visiondrop.encode(native, models.pixels(0), ids=[1, 2, 3])
