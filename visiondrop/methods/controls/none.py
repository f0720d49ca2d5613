"""No pruning: the stock model, bit for bit."""

from dataclasses import dataclass

from ...plans.plan import Plan
from ...plans.shape import VisualShape
from ..method import Method
from ..registry import register


@register("none")
@dataclass(frozen=True, kw_only=True)
class NoPruning(Method):
    """All visual tokens in every layer."""

    def plan(self, tokens: int | None, shape: VisualShape) -> Plan | None:
        """The only budget is the image's own token count, or none given."""
        if tokens not in (None, shape.tokens, shape.nominal):
            return None
        return Plan("none", shape)
