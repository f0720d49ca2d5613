"""The families of the table: stock where nothing is pruned, and each way of running a method equal to a simpler one."""

import copy
import sys
import threading

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode
from transformers import DynamicCache
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

import visiondrop
from tests.support import hub_families as tiny
from visiondrop.compat import CACHE
from visiondrop.errors import UnsupportedError, VisionDropError
from visiondrop.families.patches import PATCHES, window_index
from visiondrop.families.table import family_of

NAMES = list(tiny.BUILDERS)
BOUND = 2e-5  # a stock model's own cached decoding differs from one pass by up to 1.5e-5 here
METHODS = [
    ("visiondrop", "50%", {}),
    ("visiondrop", "50%", {"encoder": "off", "layers": (1, 4, 6)}),
    ("visionzip", "50%", {}),
    ("vispruner", "50%", {}),
    ("scope", "50%", {}),
    ("divprune", "50%", {}),
    ("fastv", "60%", {}),
    ("pyramiddrop", "50%", {}),
    ("sparsevlm", "60%", {"strict_budget": "on"}),
    ("random", "50%", {}),
    ("uniform", "50%", {}),
    ("vispruner+fastv", "40%", {}),
    ("dart", "60%", {}),
    ("holov", "50%", {}),
    ("prunesid", "50%", {}),
    ("hiprune", "50%", {}),
]


def named(case) -> str:
    return case[0] + ("-decoder" if "encoder" in case[2] else "")


def refused(name, method):
    """OneVision stitches, cuts and resamples tiles: its tokens are no grid, which HiPrune needs."""
    return name == "onevision" and method == "hiprune"


@pytest.fixture(scope="module", params=NAMES)
def name(request):
    return request.param


@pytest.fixture(scope="module")
def model(name):
    return tiny.build(name)


def one(name, seed=1, after=7, **size):
    return tiny.inputs(name, [[tiny.text(seed, 5), tiny.picture(name, seed, **size), tiny.text(seed + 50, after)]])


def logits(model, given, **more):
    with torch.no_grad():
        return model(**given, **more).logits


def extend(name, given, new):
    """The same prompt with more ids after it, for one pass."""
    ids = torch.cat([given["input_ids"], new], dim=1)
    out = {**given, "input_ids": ids}
    out["attention_mask"] = torch.cat([given["attention_mask"], torch.ones_like(new)], dim=1)
    if "mm_token_type_ids" in given:
        zeros = torch.zeros_like(new, dtype=given["mm_token_type_ids"].dtype)
        out["mm_token_type_ids"] = torch.cat([given["mm_token_type_ids"], zeros], dim=1)
    return out


def cached_is_one_pass(model, name, given, count=5):
    """Greedy decoding with a cache against one forward over prompt and answer; returns the answer."""
    out = model.generate(
        **given, max_new_tokens=count, do_sample=False, output_logits=True, return_dict_in_generate=True
    )
    new = out.sequences[:, given["input_ids"].shape[1] :]
    whole = logits(model, extend(name, given, new), use_cache=False)
    for step, found in enumerate(out.logits):
        assert (whole[:, step - count - 1] - found).abs().max() <= BOUND
    return new


@pytest.mark.parametrize(
    "settings", [("none", None, {}), ("vispruner", "100%", {}), ("visiondrop", "100%", {"encoder": "off"})]
)
def test_nothing_pruned_is_the_stock_model(model, name, settings):
    method, tokens, options = settings
    given = one(name)
    stock, answer = logits(model, given), model.generate(**given, max_new_tokens=4, do_sample=False)
    with visiondrop.apply(model, method, tokens, **options):
        assert torch.equal(logits(model, given), stock)
        assert torch.equal(model.generate(**given, max_new_tokens=4, do_sample=False), answer)
    with visiondrop.apply(model, "visiondrop", "50%"):
        assert logits(model, given).shape != stock.shape
    assert torch.equal(logits(model, given), stock)
    assert not model._forward_pre_hooks and "generate" not in model.__dict__
    assert not any("forward" in module.__dict__ for module in model.modules())


@pytest.mark.parametrize("case", METHODS, ids=named)
def test_cached_decoding_is_one_pass(model, name, case):
    method, tokens, options = case
    if refused(name, method):
        with pytest.raises(VisionDropError, match="no square"):
            visiondrop.apply(model, method, tokens, **options)
        return
    with visiondrop.apply(model, method, tokens, report=True, **options) as handle:
        given = one(name)
        cached_is_one_pass(model, name, given)
        counts = [
            sum(layer) for layer in zip(*handle.report.tokens_per_layer)
        ]  # of all tiles that are runs of their own
        picture = int((given["input_ids"] == tiny.IMAGE).sum())
        assert counts == [s for s in counts if s <= picture] and counts[-1] < picture
        mean = sum(counts) / len(counts)
        share = float(tokens[:-1]) / 100
        # PyramidDrop, FastV and DART round their counts as the official codes do; the others meet a share from above.
        assert mean >= share * picture - (1 if method in ("pyramiddrop", "fastv", "dart") else 1e-6)
        assert mean <= share * picture + (6 if method == "sparsevlm" else 4)


@pytest.mark.parametrize("case", METHODS, ids=named)
def test_a_batch_equals_its_rows_alone(model, name, case):
    method, tokens, options = case
    if refused(name, method):
        with pytest.raises(VisionDropError, match="no square"):
            visiondrop.apply(model, method, tokens, **options)
        return
    rows = [
        [tiny.text(1, 5), tiny.picture(name, 1), tiny.text(2, 9)],
        [tiny.text(3, 2), tiny.picture(name, 4, 8, 8), tiny.text(5, 4), tiny.picture(name, 6), tiny.text(7, 3)],
        [tiny.text(8, 6)],
    ]
    with visiondrop.apply(model, method, tokens, **options):
        alone = [logits(model, tiny.inputs(name, [row]))[0, -1] for row in rows]
        for side in ("left", "right"):
            given = tiny.inputs(name, rows, side)
            if name not in tiny.GRIDS:  # DART's key norms see positions, which count padding where none are given
                given["position_ids"] = (given["attention_mask"].cumsum(1) - 1).clamp(min=0)
            together = logits(model, given)
            for row, found, expected in zip(range(3), together, alone):
                assert (found[-1] - expected).abs().max() <= BOUND, (side, row)


@pytest.mark.parametrize("case", METHODS, ids=named)
def test_videos_and_pictures_together(model, name, case):
    if name in tiny.PICTURES_ONLY:
        pytest.skip("its frames are pictures")
    method, tokens, options = case
    if refused(name, method):
        pytest.skip("refused, see test_cached_decoding_is_one_pass")
    with visiondrop.apply(model, method, tokens, report=True, **options) as handle:
        only = tiny.inputs(name, [[tiny.text(1, 4), tiny.video(name, 2, 3), tiny.text(3, 6)]])
        cached_is_one_pass(model, name, only)
        assert len(handle.report.tokens_per_layer) == (3 if name in tiny.STAMPED else 1)
        if name == "glm4v":
            return  # the stock class takes no video beside a picture
        row = [tiny.text(1, 4), tiny.picture(name, 3), tiny.text(2, 3), tiny.video(name, 2), tiny.text(3, 6)]
        cached_is_one_pass(model, name, tiny.inputs(name, [row]))


@pytest.mark.parametrize("case", METHODS, ids=named)
def test_beams_and_assisted_decoding(model, name, case):
    method, tokens, options = case
    if refused(name, method):
        pytest.skip("refused, see test_cached_decoding_is_one_pass")
    if name == "internvl" and CACHE == "past_key_values":
        pytest.skip("older releases repeat the tiles of a picture one by one for beams, pruned or not")
    given = one(name)
    with visiondrop.apply(model, method, tokens, **options):
        settings = dict(max_new_tokens=4, num_beams=3, do_sample=False)
        beams = model.generate(**given, **settings)
        assert torch.equal(model.generate(**given, **settings, use_cache=False), beams)
        greedy = model.generate(**given, max_new_tokens=8, do_sample=False)
        looked_up = model.generate(**given, max_new_tokens=8, do_sample=False, prompt_lookup_num_tokens=2)
        assert torch.equal(looked_up, greedy)


@pytest.mark.parametrize("case", METHODS, ids=named)
def test_a_second_turn_continues_the_first(model, name, case):
    method, tokens, options = case
    if refused(name, method):
        pytest.skip("refused, see test_cached_decoding_is_one_pass")
    given, more = one(name), torch.tensor([tiny.text(99, 6)])
    with visiondrop.apply(model, method, tokens, **options) as handle:
        cache = DynamicCache(config=model.config.text_config)
        first = model.generate(**given, max_new_tokens=3, do_sample=False, **{CACHE: cache})
        turn = extend(name, given, torch.cat([first[:, given["input_ids"].shape[1] :], more], dim=1))
        text = {k: turn[k] for k in ("input_ids", "attention_mask")}
        second = model.generate(**text, max_new_tokens=4, do_sample=False, **{CACHE: cache})
        scratch = model.generate(**turn, max_new_tokens=4, do_sample=False)
        assert torch.equal(second, scratch)
        handle.reset()


def test_two_threads_do_not_disturb_each_other(model, name):
    prompts = [one(name, seed) for seed in (1, 2)]
    with visiondrop.apply(model, "visiondrop", "50%"):
        expected = [model.generate(**given, max_new_tokens=6, do_sample=False) for given in prompts]
        found: dict[int, list] = {0: [], 1: []}

        def work(which):
            for _ in range(4):
                found[which].append(model.generate(**prompts[which], max_new_tokens=6, do_sample=False))

        threads = [threading.Thread(target=work, args=(which,)) for which in (0, 1)]
        [thread.start() for thread in threads]
        [thread.join() for thread in threads]
    if name not in tiny.GRIDS:  # Qwen's own classes keep one `rope_deltas` per model, stock or not
        assert all(torch.equal(out, expected[which]) for which in found for out in found[which])


def stack_of(model):
    return getattr(model.model, "language_model", None) or model.model.text_model


def entering(model, given):
    """What the language model is called with."""
    seen = {}
    hook = stack_of(model).register_forward_pre_hook(lambda module, args, kwargs: seen.update(kwargs), with_kwargs=True)
    logits(model, given)
    hook.remove()
    return seen


@pytest.mark.parametrize("case", [METHODS[2], METHODS[3], METHODS[5]], ids=named)
def test_kept_tokens_by_hand_through_the_stock_stack(model, name, case):
    """What enters the language model in a stock forward, cut to the kept tokens by hand, gives the same logits."""
    method, tokens, options = case
    given = one(name)
    seen = entering(model, given)
    with visiondrop.apply(model, method, tokens, report=True, **options) as handle:
        ours, stage = logits(model, given), handle.report.stages[0]
    kept = stage.kept(0)
    places = (given["input_ids"][0] == tiny.IMAGE).nonzero()[:, 0]
    after = torch.arange(int(places[-1]) + 1, given["input_ids"].shape[1])
    order = torch.cat([torch.arange(int(places[0])), places[kept], after])
    states = seen["inputs_embeds"].clone()
    states[0, places[kept]] = stage.hidden[0]  # merged tokens stand at their references' places
    # Plain positions count what is left ("entry", "compact"); M-RoPE's stay.
    positions = seen["position_ids"][..., order] if name in tiny.GRIDS else torch.arange(len(order))[None]
    more = {}
    if seen.get("deepstack_visual_embeds"):
        features = [merge_by_hand(stage, f) for f in seen["deepstack_visual_embeds"]]
        more = {"visual_pos_masks": seen["visual_pos_masks"][:, order], "deepstack_visual_embeds": features}
    with torch.no_grad():
        out = stack_of(model)(
            inputs_embeds=states[:, order], position_ids=positions, use_cache=False, **more
        ).last_hidden_state
        by_hand = model.lm_head(out)
    assert (by_hand - ours).abs().max() <= BOUND
    assert torch.allclose(merge_by_hand(stage, seen["inputs_embeds"][0, places]), stage.hidden[0], atol=1e-6)


def merge_by_hand(stage, rows):
    """[n, D] of all tokens -> [m, D] of the kept ones: a contextual token is its reference plus the mean of its members."""
    references = stage.reference[0].tolist()
    merged = list(zip(stage.merged[0].tolist(), stage.assignment[0].tolist()))
    out = []
    for token in stage.kept(0).tolist():
        value = rows[token]
        members = [rows[m] for m, at in merged if token in references and references[at] == token]
        out.append(value + torch.stack(members).mean(0) if members else value)
    return torch.stack(out)


@pytest.mark.parametrize("method", ["visionzip", "hiprune"])
def test_encoder_scores_are_the_towers_attention(name, method):
    """Against the maps of eager attention, in the order of the tokens."""
    if refused(name, method):
        pytest.skip("refused, see test_cached_decoding_is_one_pass")
    model = tiny.build(name, attn="eager")
    given, maps = one(name), []
    with visiondrop.apply(model, method, "50%", report=True) as handle:
        layer = scored_attention(model, name)
        logits(model, given)
        found = handle.report.stages[0].scores[0]
    eager = getattr(sys.modules[type(layer).__module__], "eager_attention_forward", None)
    eager = ALL_ATTENTION_FUNCTIONS.get_interface("eager", eager)

    def keep(module, query, key, value, *args, **kwargs):
        out = eager(module, query, key, value, *args, **kwargs)
        if module is layer:
            maps.append(out[1])
        return out

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys.modules[type(layer).__module__], "eager_attention_forward", keep)
        logits(model, given)
    first = int(name == "internvl")
    rows = first if method == "visionzip" else 0  # HiPrune averages over the [CLS] row too
    received = torch.cat([m[:, :, rows:, first:].mean((1, 2)).flatten() for m in maps])
    expected = patches_to_tokens(model, name, received, given)
    assert found.shape == expected.shape and (found - expected).abs().max() <= 1e-6


def scored_attention(model, name):
    if name in tiny.GRIDS:
        blocks = model.model.visual.blocks
        return blocks[1 if name == "qwen2_5_vl" else -1].attn  # Qwen2.5: the last that sees the whole picture
    if name == "internvl":
        return model.model.vision_tower.encoder.layer[-1].attention
    return (
        model.model.get_submodule("vision_model" if name == "idefics3" else "vision_tower").encoder.layers[-1].self_attn
    )


def patches_to_tokens(model, name, numbers, given):
    """Mean over the patches of a token, by arithmetic of its own."""
    if name == "qwen2_5_vl":  # 2 x 2 patches side by side, windows of 2 x 2 tokens one after the other
        rows, columns = given["image_grid_thw"][0, 1:].tolist()
        tokens = numbers.view(-1, 4).mean(1)
        out, at = torch.zeros(rows // 2, columns // 2), 0
        for top in range(0, rows // 2, 2):
            for left in range(0, columns // 2, 2):
                for row in range(top, min(top + 2, rows // 2)):
                    for column in range(left, min(left + 2, columns // 2)):
                        out[row, column] = tokens[at]
                        at += 1
        return out.flatten()
    if name in tiny.GRIDS:
        return numbers.view(-1, 4).mean(1)
    if name in ("internvl", "idefics3"):
        side = 4 if name == "internvl" else 8
        tiles = numbers.view(-1, side, side)
        pooled = torch.nn.functional.avg_pool2d(tiles[:, None], 2)[:, 0]
        return pooled.flatten()
    return onevision_by_hand(numbers, given)


def onevision_by_hand(numbers, given):
    height, width = given["image_sizes"][0].tolist()
    tiles = numbers.view(-1, 4, 4)
    rows, columns = {112: 2, 56: 1}[height], 3 if width > 112 else 2
    assert len(tiles) == 1 + rows * columns
    canvas = tiles[1:].view(rows, columns, 4, 4).permute(0, 2, 1, 3).reshape(rows * 4, columns * 4)
    assert canvas.shape == (height // 14, width // 14)  # nothing to cut off
    lines = torch.cat([canvas, torch.zeros(len(canvas), 1)], dim=1)
    return torch.cat([tiles[0].flatten(), lines.flatten()])


@pytest.mark.parametrize("method", ["fastv", "pyramiddrop", "visiondrop"])
def test_decoder_scores_are_eager_maps(name, method):
    """The first decoder stage against the attention map of the layer it asks, computed by the stock model."""
    model = tiny.build(name, attn="eager")
    given = one(name)
    options = {"encoder": "off", "layers": (2, 4, 6)} if method == "visiondrop" else {}
    stock = model(**given, output_attentions=True)
    places = (given["input_ids"][0] == tiny.IMAGE).nonzero()[:, 0]
    with visiondrop.apply(model, method, "60%", report=True, **options) as handle:
        stage, plan = None, handle.plan
        logits(model, given)
        stage = handle.report.stages[0]
    probe = plan.stages[0].probe
    weights = stock.attentions[probe][0].mean(0)
    expected = weights[places][:, places].mean(0) if method == "visiondrop" else weights[-1, places]
    assert (stage.scores[0] - expected).abs().max() <= 1e-6


@pytest.mark.parametrize("method, tokens", [("none", None), ("uniform", "50%")])
def test_flops_are_those_counted(name, method, tokens):
    """Difference 0: tower with its windows, merger or projector, decoder, head."""
    model, given = tiny.build(name, attn="eager"), one(name)
    if name == "qwen3_vl_moe":
        model.set_experts_implementation("eager")  # the counter does not know grouped products
    shape = entered_shape(model, given)
    with visiondrop.apply(model, method, tokens) as handle:
        plan = handle.plan_for(shape)
        text = int((given["input_ids"] != tiny.IMAGE).sum())
        with FlopCounterMode(display=False) as counter:
            logits(model, given)
        ledger = plan.ledger(handle.dims, text)
    # Older releases make the angles of rotary embeddings by a product, which the counter counts.
    angles = 8000 if CACHE == "past_key_values" else 0
    assert 0 <= counter.get_total_flops() - ledger.flops <= angles


def entered_shape(model, given):
    """The shape of the picture in `given`."""
    with visiondrop.apply(model, "random", "50%") as handle, pytest.MonkeyPatch.context() as patch:
        shapes, pruner = [], handle.pruner
        stock = pruner.plan_for
        patch.setattr(pruner, "plan_for", lambda shape: (shapes.append(shape), stock(shape))[1])
        logits(model, given)
    return next(shape for shape in shapes if shape != handle.pruner.shape)


def test_what_would_be_wrong_is_refused(model, name):
    given = one(name)
    tokens = int((given["input_ids"] == tiny.IMAGE).sum())
    if name in tiny.GRIDS:  # an ordinary picture has 1,024 tokens, this one has 24
        with visiondrop.apply(model, "visionzip", tokens + 1):
            with pytest.raises(VisionDropError, match="the image's own count"):
                logits(model, given)
    with visiondrop.apply(model, "visiondrop", "50%"):
        cut = {**given, "input_ids": given["input_ids"].clone()}
        cut["input_ids"][0, 8] = 5  # one placeholder is missing
        with pytest.raises((VisionDropError, ValueError)):
            logits(model, cut)
        logits(model, given)
    with pytest.raises(UnsupportedError):
        copy.deepcopy(visiondrop.apply(model, "visiondrop", "50%"))
    visiondrop.apply(model, "none").remove()


def test_internvl_may_choose_by_cls(name):
    model, given, maps = tiny.build(name, attn="eager"), one(name), []
    if name != "internvl":
        with pytest.raises(UnsupportedError, match="allowed for .* are received"):
            visiondrop.apply(model, "vispruner", "50%", encoder_score="cls")
        return
    layer = scored_attention(model, name)
    hook = layer.register_forward_hook(lambda module, args, output: maps.append(output[1]))
    with visiondrop.apply(model, "vispruner", "50%", report=True, encoder_score="cls") as handle:
        logits(model, given)
        found = handle.report.stages[0].scores[0]
    hook.remove()
    expected = patches_to_tokens(model, name, maps[0][:, :, 0, 1:].mean(1).flatten(), given)
    assert (found - expected).abs().max() <= 1e-6
    with visiondrop.apply(model, "vispruner", "50%", report=True) as handle:
        logits(model, given)
        assert not torch.allclose(handle.report.stages[0].scores[0], expected, atol=1e-6)


@pytest.mark.parametrize("method", ["prumerge", "vscan", "flowcut", "cdpruner", "prumerge+fastv"])
def test_what_acts_on_the_patches_of_clip_is_refused(model, method):
    with pytest.raises(VisionDropError, match="CLIP|CLS|windows"):
        visiondrop.apply(model, method, "50%")


def test_coordinates_come_out_as_each_tokens_centre(model, name):
    """Row and column of every patch, sent the way to tokens: the centre of the patches of a token, in prompt order."""
    given = one(name)
    if name in tiny.GRIDS:
        rows, columns = given["image_grid_thw"][0, 1:].tolist()
        grid = torch.stack(torch.meshgrid(torch.arange(rows), torch.arange(columns), indexing="ij"), dim=-1).float()
        # The processor puts the patches of a token side by side.
        patches = grid.view(rows // 2, 2, columns // 2, 2, 2).transpose(1, 2).reshape(-1, 4, 2)
        if name == "qwen2_5_vl":
            patches = patches[window_index(model.model.visual, given["image_grid_thw"])]
        down, across = torch.meshgrid(torch.arange(rows // 2), torch.arange(columns // 2), indexing="ij")
        expected = torch.stack([2 * down + 0.5, 2 * across + 0.5], dim=-1).view(-1, 2)
        found = to_tokens(model, name, patches.reshape(-1, 2), given)
    else:
        side = {"idefics3": 8}.get(name, 4)
        tiles = given["pixel_values"].flatten(0, 1) if name in ("idefics3", "onevision") else given["pixel_values"]
        tile = torch.stack(torch.meshgrid(torch.arange(side), torch.arange(side), indexing="ij"), dim=-1).float()
        found = to_tokens(model, name, tile.view(-1, 2).repeat(len(tiles), 1), given)
        if name == "onevision":
            expected = torch.stack(
                [onevision_by_hand(tile[..., i].flatten().repeat(len(tiles)), given) for i in (0, 1)], -1
            )
            lines = expected.sum(1) == 0  # newlines have no place
            found, expected = found[~lines], expected[~lines]
        else:
            half = torch.arange(side // 2) * 2 + 0.5
            expected = torch.stack(torch.meshgrid(half, half, indexing="ij"), dim=-1).view(-1, 2).repeat(len(tiles), 1)
    assert torch.equal(found, expected)


def to_tokens(model, name, numbers, given):
    family = family_of(type(model).__name__)
    return PATCHES[family.patches](model.model, numbers, {k: v for k, v in given.items() if k != "input_ids"})
