"""No pruning: the stock model, bit for bit."""

from ...plans.plan import Plan
from ...plans.shape import VisualShape
from ..registry import register


@register("none")
def plan(tokens: int | None, shape: VisualShape) -> Plan | None:
    """All visual tokens in every layer; the only budget is the image's own token count, or none given."""
    if tokens not in (None, shape.tokens, shape.nominal):
        return None
    return Plan("none", shape)
