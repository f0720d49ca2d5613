"""VScan (TMLR 2026): patches by two tower layers, the rest averaged into them, then one cut by the prompt's last token.

Source: `Tencent/SelfEvolvingAgent`, folder VScan, commit a82450e (docs/methods/vscan.md): half of T by the attention of [CLS] in
an early tower layer, evenly from 4 x 4 windows of the grid, the other half by the feature layer; every other patch is averaged,
after the projector, into the kept one it resembles most; in the middle of the decoder the prompt's last token chooses again.
Beyond the original: float32 scores in every dtype, equal values go to the smallest patch, a window is a quarter of the
grid's side on every grid, and no patch is chosen twice where its attention underflows.
"""

import math
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from ...errors import VisionDropError
from ...ops.selection import Selection, complement, gather_rows, ranked
from ...plans.plan import EncoderStage, Kept, Plan, Stage, View
from ...plans.schedule import check_layers, nearest, scale_layers
from ...plans.shape import VisualShape
from ..decoder.pyramiddrop import by_text
from ..method import InDecoder
from ..options import option
from ..registry import register

LOCAL_LAYER, REFERENCE_TOWER = 6, 24  # the authors' early layer of CLIP-L, counted from 1
LAYER = 16  # of 32
FIRST, LAST = 1.5, 0.5  # budgets before and after the cut in the decoder
SIDES = 4  # windows per side of the grid
WINDOWS = SIDES * SIDES
UNPADDED = (
    "patches in the padding of an unpadded picture go and its newlines stay, so how many tokens stand before the cut depends on "
    "the picture; the ledger counts the most"
)
PRESETS = {"author-64": (96, 32)}  # T and tokens after the cut, see configs/methods/vscan.yaml


@register("vscan")
@dataclass(frozen=True, kw_only=True)
class VScan(InDecoder):
    """T of 1.5 budgets from the encoder, half a budget from the middle of the decoder on."""

    keep: tuple[int, ...] | None = option(
        None, "T per picture or crop, then the tokens left in the decoder (96,32), instead of a budget", amount=True
    )
    preset: str | None = option(None, "author-64: keep 96,32; instead of a budget", allowed=PRESETS, amount=True)
    layer: int | None = option(None, "decoder layer of the cut; default 16 of 32, scaled to its depth")
    local_layer: int | None = option(
        None, "tower layer of the local half, counted from 1; default 6 of 24, scaled to its depth", low=1
    )

    def plan(self, tokens: int | None, shape: VisualShape) -> Plan | None:
        """An encoder stage and one in the decoder.  None: the windows make the mean miss the budget by more than a token."""
        self.one_way(tokens)
        side, last = math.isqrt(shape.patches), shape.feature_layer + 1
        if side * side != shape.patches or side % SIDES:
            raise VisionDropError(
                f"method 'vscan' cuts the grid into {SIDES} x {SIDES} windows, which a grid of {shape.patches} patches does not "
                "have: it needs a square whose side is a multiple of 4"
            )
        early = self.local_layer or max(1, round(LOCAL_LAYER * shape.tower_layers / REFERENCE_TOWER))
        if early > last:
            raise VisionDropError(f"local_layer={early}: allowed are 1 … {last}, up to the layer whose output is read")
        at = scale_layers((LAYER,), shape.layers) if self.layer is None else check_layers((self.layer,), shape.layers)
        stated, final = self._amounts(tokens, shape)
        local, chosen = halves(stated, side)
        kept = local + chosen
        if not 1 <= kept <= shape.patches or not 1 <= final <= kept * shape.units:
            return None
        plan = Plan(
            "vscan",
            shape,
            encoder=EncoderStage(
                Kept(0, kept),
                partial(select, side=side, local=local // WINDOWS, layers=(early - 1, last - 1)),
                order="packed" if shape.source == "anyres" else "raster",
                probes=tuple(sorted({early - 1, last - 1})),
                projected=True,
                newlines=shape.newlines,
            ),
            stages=(Stage(at[0], Kept(final), by_text, at[0], "row"),),
            text_guided=True,
            notes=(rule(stated, local, chosen), *([UNPADDED] if shape.source == "anyres" else [])),
        )
        mean = (kept * shape.units * at[0] + final * (shape.layers - at[0])) / shape.layers
        return self.placed(plan) if tokens is None or abs(mean - tokens * shape.scale) <= 1 else None

    def _amounts(self, tokens: int | None, shape: VisualShape) -> tuple[int, int]:
        """T per unit as the authors state it, and the tokens of the whole image after the cut."""
        keep = PRESETS[self.preset] if self.preset else self.keep
        if keep is not None:
            if len(keep) != 2 or not 1 <= keep[0] <= shape.patches or not 1 <= keep[1] <= keep[0] * shape.units:
                raise VisionDropError(
                    f"keep={','.join(map(str, keep))}: give two counts, T of the {shape.patches} patches of a picture or crop "
                    "and no more tokens behind the cut, e.g. keep=96,32"
                )
            return keep[0], keep[1]
        return nearest(FIRST * tokens / shape.nominal_units), nearest(LAST * tokens * shape.scale)


def halves(stated: int, side: int) -> tuple[int, int]:
    """Local and global tokens of T: int(T / 2), rounded down to as many from every window, and T - int(T / 2)."""
    half = stated // 2
    return WINDOWS * min(half // WINDOWS, (side // SIDES) ** 2), stated - half


def rule(stated: int, local: int, chosen: int) -> str:
    """What the windows make of T."""
    lost = stated - local - chosen
    less = f"; {stated} was asked for, and {lost} are lost to it" if lost else ""
    return f"local tokens come in multiples of {WINDOWS}, one from each window: {local} local + {chosen} global{less}"


def select(view: View, kept: Kept, side: int, local: int, layers: tuple[int, int]) -> Selection:
    """`kept.contextual` averaged tokens in raster order, without [CLS].

    Args:
        local: tokens from each window; layers: the early tower layer and the deep one, 0-based.
    """
    early, deep = (view.at(layer).score() for layer in layers)  # [U, n] each
    chosen = two_halves(early, deep, local, side, kept.contextual)
    value, rest, assignment = average(view.projected, chosen)
    return Selection(chosen + int(view.cls), value, 0, rest + int(view.cls), assignment, deep)


def two_halves(early: Tensor, deep: Tensor, local: int, side: int, count: int) -> Tensor:
    """The best `local` of every window by `early`, then the best by `deep` until there are `count`.

    Args:
        early, deep: [U, side * side] float32.

    Returns:
        [U, count] long, ascending.
    """
    wide = side // SIDES
    places = torch.arange(side * side, device=early.device).view(SIDES, wide, SIDES, wide).transpose(1, 2).reshape(-1)
    windows = early[:, places].view(-1, wide * wide)
    best = ranked(windows, local).view(len(early), WINDOWS, -1)
    shift = wide * wide * torch.arange(WINDOWS, device=early.device)[:, None]
    taken = torch.zeros_like(deep, dtype=torch.bool).scatter(1, places[(best + shift).flatten(1)], True)
    return ranked(deep.masked_fill(taken, float("inf")), count).sort(dim=1).values


def average(states: Tensor, kept: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Every state that is not kept joins the kept one of largest cosine, which becomes the mean of all of them.

    Args:
        states: [U, n, D]; kept: [U, K] long, ascending.

    Returns:
        (means [U, K, D]; slots that joined [U, n - K], ascending; for each the kept one it joined, 0 … K-1).
    """
    rest = complement(kept, states.shape[1])
    unit = torch.nn.functional.normalize(states.float(), dim=-1, eps=1e-8)
    joined = (gather_rows(unit, rest) @ gather_rows(unit, kept).transpose(1, 2)).argmax(dim=-1)
    # A one-hot product instead of scatter-add: the same sum, deterministic on every device.
    member = (joined.unsqueeze(-1) == torch.arange(kept.shape[1], device=kept.device)).float()  # [U, n - K, K]
    total = gather_rows(states, kept).float() + member.transpose(1, 2) @ gather_rows(states, rest).float()
    return (total / (1 + member.sum(dim=1).unsqueeze(-1))).to(states.dtype), rest, joined
