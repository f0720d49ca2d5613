"""The encoder stage: between the vision tower and the projector, one unit (crop or frame) at a time.

The tower's attention is untouched.  While its feature layer runs, the outputs of that layer's q and k projections
are picked up; from them only the [CLS] row of the attention is computed, or, for towers without [CLS], the mean over
visual queries in chunks.
"""

import threading
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext

import torch
from torch import Tensor, nn

from ..ops import scores


class Probe:
    """Queries and keys of one tower layer, picked up while it runs."""

    def __init__(self):
        self.query: Tensor | None = None
        self.key: Tensor | None = None

    @contextmanager
    def watch(self, attention: nn.Module) -> Iterator["Probe"]:
        """Pick up the outputs of `attention.q_proj` and `attention.k_proj`, each [U, R, H * E], inside the block.

        Only the calling thread's: another may be in the same tower.
        """
        thread = threading.get_ident()

        def keep(name):
            def pick_up(module, args, output) -> None:
                if threading.get_ident() == thread:
                    setattr(self, name, output)

            return pick_up

        hooks = [
            attention.q_proj.register_forward_hook(keep("query")),
            attention.k_proj.register_forward_hook(keep("key")),
        ]
        try:
            yield self
        finally:
            for hook in hooks:
                hook.remove()


@torch.compiler.disable  # it reads what layers hand on inside, by hooks that a compiled tower would not call
def tower_features(tower: nn.Module, pixels: Tensor, select_layer: int, probe: Probe | None = None) -> Tensor:
    """hidden_states[select_layer] of a CLIP or SigLIP vision transformer, bit for bit; later layers are not run.

    Args:
        pixels: [U, 3, H, W] in the tower's dtype; select_layer: as in LLaVA's configurations, e.g. -2.
        probe: picks up queries and keys of the layer whose output is returned.

    Returns:
        [U, R, D], row 0 = [CLS] where the tower has one.
    """
    layers, hidden = tower.encoder.layers, tower.embeddings(pixels)
    last = select_layer if select_layer >= 0 else len(layers) + 1 + select_layer
    if hasattr(tower, "pre_layrnorm"):
        hidden = tower.pre_layrnorm(hidden)
    for i, layer in enumerate(layers[:last]):
        with probe.watch(layer.self_attn) if probe is not None and i == last - 1 else nullcontext():
            hidden = layer(hidden, None)
    return hidden


class EncoderView:
    """What an encoder-stage selector may ask about U units.

    Attributes:
        hidden: [U, R, D] states of the feature layer's output, row 0 = [CLS] where there is one.
        cls: whether row 0 is [CLS].
        keep: rows the stage must return per unit.
    """

    def __init__(
        self, hidden: Tensor, probe: Probe, heads: int, cls: bool, keep: int, chunk: int = 256, fuse: bool = False
    ):
        self.hidden, self.cls, self.keep, self._chunk, self._fuse = hidden, cls, keep, chunk, fuse
        units, rows, width = probe.query.shape
        self._query = probe.query.view(units, rows, heads, width // heads).transpose(1, 2)
        self._key = probe.key.view(units, rows, heads, width // heads).transpose(1, 2)

    def score(self) -> Tensor:
        """[U, n] float32, one per patch: attention from [CLS], mean over heads, softmax over all R keys.

        The official codes sum over heads (VisionZip, VisionDrop) or average (VisPruner): the order is the same.
        Without [CLS]: mean over visual queries of the attention received (paper, "Visual Query Selection").
        """
        scale = self._query.shape[-1] ** -0.5
        if self.cls:
            return scores.attention_rows(self._query[:, :, :1], self._key, scale, None)[:, 0, 1:]
        return scores.received(self._query, self._key, scale, None, "bidirectional", self._chunk, self._fuse)

    def metric(self) -> Tensor:
        """[U, R, E] keys (bias included, unscaled), mean over heads."""
        return self._key.mean(dim=1)
