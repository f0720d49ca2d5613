"""Two methods as one: an encoder stage of one, then the decoder stages of another, under one budget."""

from dataclasses import dataclass, replace
from typing import Any

from ..errors import VisionDropError
from ..plans.budget import Budget
from ..plans.grids import left_over
from ..plans.plan import Plan
from ..plans.schedule import nearest
from ..plans.shape import VisualShape
from .method import Method
from .options import option

JOIN = "+"  # vispruner+fastv
ENCODER_SHARE = 0.9


def compose(
    *,
    encoder: Method | None = None,
    decoder: Method | None = None,
    tokens: Budget = None,
    encoder_share: float | None = None,
) -> Method:
    """`encoder`'s stage after the vision tower, then `decoder`'s stages inside the language model.

    Args:
        encoder: a method with an encoder stage only, e.g. `VisPruner()`; decoder: one with decoder stages only, e.g.
            `FastV()`, `VisionDrop(encoder=False)`.  One alone is that method.
        tokens: the budget of both together, mean visual tokens per decoder layer; None where both have explicit amounts.
        encoder_share: of the tokens that the budget removes from an average layer, the share that is gone before the
            first layer already, 0 … 1; default 0.9.

    Raises:
        VisionDropError: no method, or a setting given twice.
    """
    for name, part in (("encoder", encoder), ("decoder", decoder)):
        if part is not None and not isinstance(part, Method):
            raise VisionDropError(f"{name}={part!r}: give a method's value, e.g. VisPruner() or FastV()")
    if encoder is not None and decoder is not None:
        return Composed(encoder=encoder, decoder=decoder, tokens=tokens, encoder_share=encoder_share)
    part = encoder or decoder
    if part is None:
        raise VisionDropError("compose() of nothing: give encoder=VisPruner(), or decoder=FastV(), or both")
    if encoder_share is not None:
        raise VisionDropError(f"encoder_share={encoder_share}: one method alone has nothing to share; leave it out")
    if tokens is not None and part.tokens not in (None, tokens):
        raise VisionDropError(f"tokens={tokens} and {part!r}: give the budget once")
    return part if tokens is None else replace(part, tokens=tokens)


@dataclass(frozen=True, kw_only=True)
class Composed(Method):
    """See `compose`."""

    encoder: Method
    decoder: Method
    encoder_share: float | None = option(
        None, f"share of what the budget removes that the encoder stage removes; default {ENCODER_SHARE}"
    )

    def __post_init__(self):
        super().__post_init__()
        for name, part in (("encoder", self.encoder), ("decoder", self.decoder)):
            if isinstance(part, Composed):
                raise VisionDropError(f"{name}={part.name!r}: two methods can be joined, one encoder and one decoder")
            if part.tokens is not None:
                raise VisionDropError(f"{name}={part!r}: give the budget to both together, compose(..., tokens=64)")
        if self.encoder_share is not None and self.encoder.fixed:
            raise VisionDropError(
                f"encoder_share={self.encoder_share} and {self._amounts('encoder')} given together: give one of them"
            )

    @property
    def name(self) -> str:  # type: ignore[override]
        """As on a command line: vispruner+fastv."""
        return f"{self.encoder.name}{JOIN}{self.decoder.name}"

    def options(self) -> dict[str, Any]:
        """Options not at their defaults: `encoder.x`, `decoder.y` and `encoder_share`."""
        own = {} if self.encoder_share is None else {"encoder_share": self.encoder_share}
        parts = {"encoder": self.encoder, "decoder": self.decoder}
        return {**own, **{f"{at}.{k}": v for at, part in parts.items() for k, v in part.options().items()}}

    def plan(self, tokens: int | None, shape: VisualShape) -> Plan | None:
        """The encoder stage keeps N - share * (N - budget) of N tokens; the decoder's stages bring the mean to the budget.

        Where the encoder has explicit amounts, they stand and the decoder's stages do the rest.
        """
        if self.decoder.fixed and tokens is not None:
            raise VisionDropError(
                f"tokens={tokens} and {self._amounts('decoder')} given together: give the budget, or explicit amounts of both"
            )
        first = self._first(tokens, shape)
        if first is None:
            return None
        if first.stages:
            raise VisionDropError(
                f"encoder={self.encoder.name!r} acts inside the language model: give a method that acts after the vision tower "
                "only, such as visionzip or vispruner"
            )
        inside = shape if first.encoder is None else left_over(shape, first.entry)
        if tokens is not None and tokens > inside.nominal:
            if tokens > inside.nominal + 1:  # the encoder stage alone brings the mean below the budget
                return None
            tokens = inside.nominal
        rest = self.decoder.plan(tokens, inside)
        if rest is None:
            return None
        if rest.encoder is not None:
            raise VisionDropError(
                f"decoder={self.decoder.name!r} acts after the vision tower too: give a method that acts inside the language "
                "model only, such as fastv, or visiondrop with encoder=off"
            )
        renumbered = first.encoder is not None and "positions" not in self.decoder.options()
        return replace(
            rest,
            method=self.name,
            shape=shape,
            encoder=first.encoder,
            tower=first.tower,
            positions="entry" if renumbered and rest.positions == "original" else rest.positions,
            text_guided=first.text_guided or rest.text_guided,
            question=first.question,
            extra_flops=first.extra_flops,
            seeded=first.seeded or rest.seeded,
            notes=(*first.notes, *rest.notes, _split_note(shape, first.entry, rest)),
        )

    def _first(self, tokens: int | None, shape: VisualShape) -> Plan | None:
        """The encoder's plan."""
        if tokens is None or self.encoder.fixed:
            return self.encoder.plan(None, shape)
        share = ENCODER_SHARE if self.encoder_share is None else self.encoder_share
        kept = nearest((shape.nominal - share * (shape.nominal - tokens)) / shape.nominal_units)
        return self.encoder.plan(min(shape.patches, max(1, kept)) * shape.nominal_units, shape)

    def _amounts(self, at: str) -> str:
        given = {k: v for k, v in getattr(self, at).amounts().items() if v is not None}
        return ", ".join(f"{at}.{k}={v!r}" for k, v in given.items())


def _split_note(shape: VisualShape, entry: int, rest: Plan) -> str:
    """Who removes how much, in tokens of an average layer."""
    mean = sum(rest.tokens_per_layer()) / shape.layers
    return (
        f"of {shape.tokens} tokens the encoder stage removes {shape.tokens - entry} before the first layer, the decoder's "
        f"stages {entry - mean:.2f} in the mean over layers"
    )
