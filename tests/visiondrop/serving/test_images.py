"""Plans of a served model, what is refused, and its rows: a tower with fused projections against our own."""

import copy

import pytest
import torch
from torch import nn
from transformers import CLIPVisionConfig, LlamaConfig, LlavaConfig, LlavaForConditionalGeneration, LlavaNextConfig

import visiondrop
from visiondrop.errors import UnsupportedError, VisionDropError
from visiondrop.plans.plan import Plan
from visiondrop.serving.command import _overrides, overrides, server_command
from visiondrop.serving.entry import enter
from visiondrop.serving.images import Images
from visiondrop.serving.plugin import version_problem
from visiondrop.serving.settings import Served, Setting
from visiondrop.serving.tower import Tower, watched
from visiondrop.tower.stage import Eyes, encode

TEXT = {"vocab_size": 64, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 8, "num_attention_heads": 4}
VISION = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 8,
    "num_attention_heads": 4,
    "image_size": 112,
    "patch_size": 14,
}
SERVED = [
    ("visionzip", 16, {}),
    ("vispruner", 16, {}),
    ("visiondrop-encoder", 16, {}),
    ("scope", 16, {}),
    ("holov", 16, {}),
    ("hiprune", 16, {}),
    ("prunesid", 16, {}),
    ("flowcut", 16, {}),
    ("divprune", 16, {}),
    ("random", 16, {}),
    ("uniform", 16, {}),
    ("pool", 16, {}),
    ("visionzip+divprune", 16, {}),
    ("visionzip", 16, {"tower_stages": "2:40"}),
]


def config(next_: bool = False, **told):
    kind, more = (LlavaNextConfig, {"image_grid_pinpoints": [[112, 224], [224, 112]]}) if next_ else (LlavaConfig, {})
    made = kind(text_config=LlamaConfig(**TEXT), vision_config=CLIPVisionConfig(**VISION), image_token_index=63, **more)
    if told:
        made.visiondrop = told
    return made


class Fused(nn.Module):
    """A layer of CLIP as vLLM has it: one projection for queries, keys and values, and no mask."""

    def __init__(self, layer: nn.Module):
        super().__init__()
        self.layer, self.self_attn = layer, nn.Module()
        own = layer.self_attn
        self.self_attn.qkv_proj = nn.Linear(32, 96)
        with torch.no_grad():
            self.self_attn.qkv_proj.weight.copy_(torch.cat([own.q_proj.weight, own.k_proj.weight, own.v_proj.weight]))
            self.self_attn.qkv_proj.bias.copy_(torch.cat([own.q_proj.bias, own.k_proj.bias, own.v_proj.bias]))

    def forward(self, hidden):
        self.self_attn.qkv_proj(self.layer.layer_norm1(hidden))
        return self.layer(hidden, None)


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    return LlavaForConditionalGeneration(config()).eval()


@pytest.mark.parametrize("method, tokens, options", SERVED)
def test_the_rows_that_are_served_are_those_of_the_pruned_model(model, method, tokens, options):
    """Against transformers' class under `apply`: what enters its first decoder layer in place of the placeholders."""
    images = Images(config(method=method, tokens=tokens, options=options))
    setting, seen = images.served.default, []
    vision = copy.deepcopy(getattr(model.model.vision_tower, "vision_model", model.model.vision_tower))
    vision.encoder.layers = nn.ModuleList(map(Fused, vision.encoder.layers[:7]))  # up to the feature layer
    pixels = torch.randn(2, 3, 112, 112, generator=torch.Generator().manual_seed(1))
    ids = torch.tensor([[1, *[63] * 64, 5, 6], [1, *[63] * 64, 7, 8]])
    with visiondrop.apply(model, method, tokens, options=options), torch.no_grad():
        hook = model.model.language_model.layers[0].register_forward_pre_hook(
            lambda module, args, kwargs: seen.append(args[0]), with_kwargs=True
        )
        model(input_ids=ids, pixel_values=pixels)
        hook.remove()
    pictures, plan = images.adapter.pictures({"pixel_values": pixels}), images.plan(setting, images.shape)
    pruner = images.pruner(setting)
    with torch.no_grad():
        if plan.encoder is None:
            rows = list(model.model.get_image_features(pixel_values=pixels).pooler_output)
        else:
            tower = Tower(vision, 4, watched(plan))
            eyes = Eyes(tower, plan.shape.feature_layer + 1, model.model.multi_modal_projector, None)
            rows = encode(pruner, eyes, pictures, [0, 1], 2).rows
        rows = enter(plan, rows, [pruner.seed_of(p.pixels) for p in pictures])
    assert all(len(row) == plan.counts[-1] for row in rows)
    for row, states in zip(rows, seen[-1], strict=True):
        assert torch.allclose(row, states[1 : 1 + len(row)], atol=1e-5)


def test_attention_is_gathered_where_it_is_asked_for():
    calls, tower = [], nn.Module()
    tower.embeddings, tower.pre_layrnorm, tower.encoder = nn.Identity(), nn.Identity(), nn.Module()
    layer = nn.Module()
    layer.self_attn = nn.Module()
    layer.self_attn.qkv_proj = nn.Linear(4, 6, bias=False)  # one of two processes: half of the heads
    layer.forward = lambda hidden: layer.self_attn.qkv_proj(hidden)[..., :4]
    tower.encoder.layers = nn.ModuleList([layer])

    def gather(rows):
        calls.append(rows.shape)
        return torch.cat([rows, rows], dim=-1)

    found = {}
    for asked in ((), (0,)):
        first = Tower(tower, 2, asked, gather).encoder.layers[0]
        first.self_attn.k_proj.register_forward_hook(lambda module, args, output: found.update(key=output))
        first(torch.ones(1, 3, 4), None)
        assert len(calls) == 3 * len(asked)
    assert found["key"].shape == (1, 3, 4)


@pytest.mark.parametrize(
    "told, sentence",
    [
        ({"method": "visiondrop", "tokens": 16}, "inside the decoder, at layer 2.*served are.*visionzip"),
        ({"method": "fastv", "tokens": 32}, "inside the decoder"),
        ({"method": "cdpruner", "tokens": 16}, "reads the question"),
        ({"method": "prumerge", "tokens": 16}, "tower layer 7, and vLLM loads the tower up to layer 6"),
        ({"method": "visionzip", "tokens": 65}, "must lie in 1 … 64"),
        ({"method": "visionzip", "tokens": 32, "most_tokens": 16}, "this server allows 16"),
        ({"method": "none", "most_tokens": 16}, "this server allows 16"),
    ],
)
def test_what_cannot_be_served_is_refused_when_the_server_starts(told, sentence):
    with pytest.raises(VisionDropError, match=sentence):
        Images(config(**told))


def test_a_request_cannot_pass_the_cap():
    images = Images(config(method="visionzip", tokens=16, most_tokens=32))
    assert images.plan(images.served.asked({"tokens": 32}), images.shape).counts == [32]
    with pytest.raises(VisionDropError, match="asks? for a smaller budget|ask for a smaller budget"):
        images.plan(images.served.asked({"method": "none"}), images.shape)


def test_plans_are_remembered_within_bounds():
    images = Images(config())
    for seed in range(300):
        images.plan(Setting("random", 8, (("seed", seed),)), images.shape)
    assert images.pruner.cache_info().currsize == images.pruner.cache_info().maxsize == 256


def test_llava_next_gets_a_share_for_every_size():
    images = Images(config(next_=True, method="visionzip", tokens=80))
    square, wide = images.describe((112, 112)), images.describe((100, 224))
    assert square.shape.units == wide.shape.units == 3 and wide.grid == (2, 1)
    assert images.plan(images.served.default, wide.shape).counts == [3 * 16]
    tokens = len(wide.ids)
    assert tokens == wide.shape.tokens and (wide.ids < 0).sum() == wide.shape.newlines
    assert images.plan(Setting("divprune", 80), wide.shape).counts[-1] == round(80 / 320 * tokens)


def test_models_that_are_not_served_are_told():
    mixed = config()
    mixed.vision_feature_layer = [-2, -1]
    with pytest.raises(UnsupportedError, match="one feature layer"):
        Images(mixed)
    for kind, sentence in (("qwen2_5_vl", "recompute_mrope_positions"), ("mllama", "served are llava, llava_next")):
        other = config()
        other.model_type = kind
        with pytest.raises(UnsupportedError, match=sentence):
            Images(other)


def test_stages_at_entry_act_one_after_the_other():
    plan = visiondrop.plan("uniform", 16, layers=8, patches=64)
    rows = torch.arange(64.0)[:, None].expand(64, 4)
    (kept,) = enter(plan, [rows], [0])
    assert len(kept) == 16 and torch.equal(kept, rows[kept[:, 0].long()])
    assert isinstance(plan, Plan) and enter(visiondrop.plan("none", layers=8, patches=64), [rows], [0])[0] is rows


@pytest.mark.parametrize("version, fits", [("0.32.0", True), ("0.33.1+cu130", True), ("0.31.9", False), (None, False)])
def test_versions_of_vllm(version, fits):
    assert (version_problem(version) is None) is fits


def test_the_command_joins_the_users_own_overrides():
    flags, given = _overrides(["--port", "8000", "--hf-overrides", '{"a": 1}', "--seed", "3"])
    assert flags == ["--port", "8000", "--seed", "3"] and given == {"a": 1}
    assert _overrides(['--hf-overrides={"a": 1}'])[1] == {"a": 1}
    with pytest.raises(VisionDropError, match="JSON object"):
        _overrides(["--hf-overrides", "[1]"])
    told = overrides("llava_next", {"method": "visionzip", "tokens": 64})
    assert told["architectures"] == ["VisionDropLlavaNextForConditionalGeneration"]
    command = server_command("model", told, ["--port", "8000"])
    assert command[1] == "-m" and command[-2:] == ["--port", "8000"] and "--hf-overrides" in command
    assert Served.of(config(**told["visiondrop"])).default == Setting("visionzip", 64)
