"""Prefill FLOPs of a plan, by the convention behind Table 4 of the paper, which states none.

It was found by trying: of the conventions in use only this one gives 9.06, 2.11 and 46.25 T for the table's first three
rows, within 0.2 % (63 text tokens: 62 and 64 miss the first row).

Multiply-add counts 2; QK^T and PV are counted in full (no causal halving); all tower layers and the patch
convolution per unit; the projector; the head on every surviving prompt position; one prefill, no decoding.
VisionDrop's stages add what the released code computes for its scores: q, k, v of the next layer for all tokens
and one QK^T of the visual rows.  `lean` counts what is needed: tower up to the feature layer, causal attention,
head on the last position, scores from q and k already at hand.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from .shape import VisualShape
from .towers import GridTower


@dataclass(frozen=True)
class ModelDims:
    """Dimensions of a LLaVA-shaped model (`layers` is the decoder's depth).

    Attributes:
        temporal: every tower layer also attends over frames, patch by patch (LanguageBind's video tower).
        attention: width of all query heads together, where it is not `hidden`; router: experts a router chooses from.
        grid_tower: a tower and projector of another kind, in place of all `vision_…` numbers.
    """

    name: str = "LLaVA-1.5-7B"
    hidden: int = 4096
    intermediate: int = 11008
    layers: int = 32
    vocab: int = 32000
    kv_share: float = 1.0  # key/value heads over query heads
    vision_hidden: int = 1024
    vision_intermediate: int = 4096
    vision_layers: int = 24
    patch_inputs: int = 588  # 3 x 14 x 14
    cls: int = 1
    temporal: bool = False
    attention: int = 0
    router: int = 0
    grid_tower: GridTower | None = None


LLAVA_7B = ModelDims()
LLAVA_13B = ModelDims("LLaVA-1.5-13B", hidden=5120, intermediate=13824, layers=40)
VIDEO_LLAVA_7B = replace(LLAVA_7B, name="Video-LLaVA-7B", temporal=True)


def model_dims(name: str, text: Any, vision: Any, cls: int = 1) -> ModelDims:
    """Dimensions for FLOPs from a text and a vision configuration."""
    return ModelDims(
        name=name,
        hidden=text.hidden_size,
        intermediate=text.intermediate_size,
        layers=text.num_hidden_layers,
        vocab=text.vocab_size,
        kv_share=text.num_key_value_heads / text.num_attention_heads,
        vision_hidden=vision.hidden_size,
        vision_intermediate=vision.intermediate_size,
        vision_layers=vision.num_hidden_layers,
        patch_inputs=3 * vision.patch_size**2,
        cls=cls,
    )


def tower(dims: ModelDims, patches: int, layers: int, units: int, rows: Sequence[int] | None = None) -> int:
    """Vision tower: `layers` transformer layers and the patch convolution, for `units` crops or frames.

    Args:
        rows: at the input of every layer, [CLS] included, where stages inside the tower make them fewer.
    """
    d, m = dims.vision_hidden, dims.vision_intermediate
    rows = [patches + dims.cls] * layers if rows is None else rows
    per_row = 4 * d * d + 2 * d * m + (4 * d * d + 2 * units * d if dims.temporal else 0)
    return units * 2 * (sum(n * per_row + 2 * n * n * d for n in rows) + patches * dims.patch_inputs * d)


def projected(plan: Any, dims: ModelDims) -> int:
    """Rows that go through the projector: what the encoder stage keeps, or, where it chooses by projected states or there
    is none, every patch (newlines are added later).

    A video tower hands the [CLS] of each frame on as well.
    """
    shape = plan.shape
    if plan.encoder is not None and plan.encoder.projected:
        return shape.units * shape.patches
    if plan.encoder is not None:
        return plan.encoder.keep * shape.units
    return shape.units * (shape.patches + (dims.cls if shape.kind == "video" else 0))


def projector(dims: ModelDims, tokens: int) -> int:
    """Two-layer MLP on `tokens` rows."""
    return 2 * tokens * (dims.vision_hidden * dims.hidden + dims.hidden**2)


def block(dims: ModelDims, n: int, past: int = 0, causal: bool = False) -> float:
    """One decoder layer on `n` new tokens after `past` cached ones."""
    d, m, a = dims.hidden, dims.intermediate, dims.attention or dims.hidden
    pairs = n * (n + 1) / 2 + n * past if causal else n * (n + past)
    return 2 * n * ((2 + 2 * dims.kv_share) * d * a + 3 * d * m + d * dims.router) + 4 * a * pairs


def head(dims: ModelDims, positions: int) -> int:
    """Language-model head on `positions` rows."""
    return 2 * positions * dims.hidden * dims.vocab


def score(dims: ModelDims, kind: str, visual: int, sequence: int, lean: bool = False) -> float:
    """Scores of one stage: "visual" rows, one text "row", some text "rows", or none ("")."""
    d, a = dims.hidden, dims.attention or dims.hidden
    if kind == "visual":
        projections = 2 * (1 + 2 * dims.kv_share) * d * a * sequence
        return visual * sequence * a if lean else projections + 2 * visual * sequence * a
    return {"": 0, "row": 2 * sequence * a, "rows": 2 * (sequence - visual) * sequence * a}[kind]


@dataclass(frozen=True)
class TextHalf:
    """Widths of CLIP's text half; `joint`: of the space it shares with pictures."""

    hidden: int = 768
    intermediate: int = 3072
    layers: int = 12
    places: int = 77
    joint: int = 768


CLIP_L = TextHalf()


def text_half(half: TextHalf, ids: int) -> int:
    """CLIP's text half on one text of `ids` tokens, and its projection."""
    d, m = half.hidden, half.intermediate
    return 2 * (half.layers * ((4 * d * d + 2 * d * m) * ids + 2 * ids * ids * d) + d * half.joint)


def question_guided(dims: ModelDims, shape: VisualShape, kept: int, half: TextHalf = CLIP_L) -> int:
    """Choosing by the question after the projector: CLIP's text half on one full segment, patches in its space, their
    similarities as the language model gets them, and `kept` steps of a Cholesky factor.
    """
    n = shape.patches
    each = 2 * n * dims.vision_hidden * half.joint + 2 * n * n * dims.hidden + n * kept * kept
    return text_half(half, half.places) + shape.units * each


def encoding(plan: Any, dims: ModelDims, lean: bool = False) -> int:
    """FLOPs of tower and projector on one image."""
    shape = plan.shape
    if dims.grid_tower is not None:  # runs whole, its encoder stage acts on entry of the decoder
        return dims.grid_tower.flops(shape)
    depth = dims.vision_layers - int(lean)
    rows = plan.tower_rows(depth) if plan.tower else None
    return tower(dims, shape.patches, depth, shape.units, rows) + projector(dims, projected(plan, dims))


def prefill(plan: Any, dims: ModelDims, text: int, lean: bool = False) -> float:
    """FLOPs of encoding one image and prefilling `text` + visual tokens under `plan`."""
    total: float = encoding(plan, dims, lean)
    total += sum(block(dims, n + text, causal=lean) for n in plan.tokens_per_layer())
    total += head(dims, 1 if lean else plan.counts[-1] + text)
    if plan.extra_flops is not None:
        total += plan.extra_flops(dims)
    for before, stage in zip(plan.counts, plan.stages):
        if stage.keep < before:  # a stage that keeps every token is skipped
            total += score(dims, stage.scoring, before, before + text, lean)
    return total
