"""A vision tower with fused projections, perhaps split over processes, as `tower.stage` runs towers."""

from collections.abc import Callable, Collection
from typing import Any

from torch import Tensor, nn

from ..plans.plan import Plan

Gather = Callable[[Tensor], Tensor]


class Attention(nn.Module):
    """Stands for a layer's attention: what its fused projection gives passes through here, where probes may pick it up."""

    def __init__(self, heads: int):
        super().__init__()
        self.num_heads = heads
        self.q_proj, self.k_proj, self.v_proj = nn.Identity(), nn.Identity(), nn.Identity()


class Layer:
    """One layer of the tower.

    Attributes:
        self_attn: where its queries, keys and values are picked up, [U, R, H * E] of all heads.
    """

    def __init__(self, layer: Any, heads: int, watched: bool, gather: Gather):
        self._layer, self._watched, self._gather = layer, watched, gather
        self.self_attn = Attention(heads)

    def __call__(self, hidden: Tensor, mask: None) -> Tensor:
        """[U, R, D] -> [U, R, D]; a tower has no mask."""
        if not self._watched:
            return self._layer(hidden)
        hook = self._layer.self_attn.qkv_proj.register_forward_hook(self._hand_on)
        try:
            return self._layer(hidden)
        finally:
            hook.remove()

    def _hand_on(self, module: nn.Module, args: Any, output: Any) -> None:
        fused = output[0] if isinstance(output, tuple) else output
        attention = self.self_attn
        for projection, own in zip((attention.q_proj, attention.k_proj, attention.v_proj), fused.chunk(3, dim=-1)):
            projection(self._gather(own))


class Encoder:
    """The layers that there are."""

    def __init__(self, layers: list[Layer]):
        self.layers = layers


class Tower:
    """A CLIP vision transformer of vLLM, which ends at the feature layer, as `tower.stage.encode` needs one.

    Attributes:
        embeddings, pre_layrnorm: its own; encoder: its layers.
    """

    def __init__(self, tower: Any, heads: int, watched: Collection[int], gather: Gather = lambda x: x):
        """Args:
        watched: 0-based layers whose queries, keys and values are asked for.
        gather: [U, R, h * E] of this process's heads -> [U, R, H * E] of all.
        """
        self._tower = tower
        self.embeddings, self.pre_layrnorm = tower.embeddings, tower.pre_layrnorm
        self.encoder = Encoder(
            [Layer(layer, heads, i in watched, gather) for i, layer in enumerate(tower.encoder.layers)]
        )

    def parameters(self) -> Any:
        """The tower's."""
        return self._tower.parameters()


def watched(plan: Plan) -> frozenset[int]:
    """The tower layers whose attention a plan asks for."""
    if plan.encoder is None:
        return frozenset()
    own = plan.encoder.probes or (plan.shape.feature_layer,)
    return frozenset(own).union(*(stage.probes for stage in plan.tower))
