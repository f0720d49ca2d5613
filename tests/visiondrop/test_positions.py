"""positions=compact|original: what the rotary embedding is told, against a stack that is fed the kept tokens by hand."""

import pytest
import torch

import visiondrop
from tests.support import models
from visiondrop.errors import VisionDropError
from visiondrop.methods.method import InDecoder
from visiondrop.methods.registry import available, method_class

LAYERS, TOLERANCE = 8, 1e-5


@pytest.fixture(scope="module")
def native():
    return models.native(LAYERS)


def by_hand(model, ids: list[int], kept: list[torch.Tensor], at: list[int], positions: str) -> torch.Tensor:
    """Logits of the last token: before layer at[s] the visual tokens kept[s] (ids of patches) stay, nothing is merged."""
    place, embed = ids.index(-200), model.get_input_embeddings()
    visual = model.encode_images(models.pixels(0))[0][0]
    states = torch.cat([embed(torch.tensor(ids[:place])), visual, embed(torch.tensor(ids[place + 1 :]))])[None]
    here, numbers = list(range(len(visual))), torch.arange(states.shape[1])[None]
    for i, layer in enumerate(model.model.layers):
        if i in at:
            chosen = kept[at.index(i)].tolist()
            columns = [
                *range(place),
                *(place + here.index(k) for k in chosen),
                *range(place + len(here), states.shape[1]),
            ]
            states, numbers, here = states[:, columns], numbers[:, columns], chosen
            numbers = torch.arange(states.shape[1])[None] if positions == "compact" else numbers
        n = states.shape[1]
        mask = torch.full((n, n), torch.finfo(states.dtype).min).triu(1)[None, None]
        rope = model.model.rotary_emb(states, position_ids=numbers)
        states = layer(states, attention_mask=mask, position_embeddings=rope, position_ids=None)
        states = states[0] if isinstance(states, tuple) else states
    return model.lm_head(model.model.norm(states))[0, -1]


CASES = {
    "fastv": dict(tokens=100),
    "dart": dict(tokens=100),
    "pyramiddrop": dict(tokens=100),
    "divprune": dict(tokens=64),
    "random": dict(tokens=64),
    "uniform": dict(tokens=64),
    "visiondrop": dict(tokens=100, merge=False, encoder=False, layers=(1, 3, 5)),
}


@pytest.mark.parametrize("positions", ["compact", "original"])
@pytest.mark.parametrize("name", CASES)
@torch.inference_mode()
def test_logits_are_those_of_the_kept_tokens_at_these_positions(native, name, positions):
    ids = models.prompt()
    with visiondrop.apply(native, method=name, report=True, positions=positions, **CASES[name]) as handle:
        assert handle.plan.options["positions"] == positions
        got = native(input_ids=torch.tensor([ids]), images=models.pixels(0)).logits[0, -1]
        kept, at = [s.kept() for s in handle.report.stages], [s.layer for s in handle.plan.stages]
    assert (got - by_hand(native, ids, kept, at, positions)).abs().max() <= TOLERANCE
    other = "original" if positions == "compact" else "compact"
    assert (got - by_hand(native, ids, kept, at, other)).abs().max() > 100 * TOLERANCE


def test_every_method_that_acts_in_the_decoder_has_the_option():
    acts = {name for name in available() if has_stages(name)}
    assert acts == {name for name in available() if issubclass(method_class(name), InDecoder)}


def has_stages(name: str) -> bool:
    if name == "cdpruner":
        return False  # an encoder method that needs a CLIP
    return bool(visiondrop.plan(name, None if name == "none" else 64).stages)


def test_a_composed_plan_takes_the_decoders_positions():
    plain = visiondrop.plan("vispruner+fastv", 64)
    asked = visiondrop.plan("vispruner+fastv", 64, options={"decoder.positions": "original"})
    assert (plain.positions, asked.positions) == ("entry", "original")


def test_models_whose_positions_are_places_refuse_compact():
    from tests.support import hub_families

    model = hub_families.build("qwen2_5_vl")
    with pytest.raises(VisionDropError, match="M-RoPE"):
        visiondrop.apply(model, "fastv", "50%", options={"positions": "compact"})
