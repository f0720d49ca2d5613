"""What a decoder really sees: the number of tokens that every layer's attention gets, in the first prefill of a run.

The ledger says what a plan keeps; a port that forgets to hand the shorter sequence on still prints that ledger.  Hooks on the
layers of the model at hand count them, once, and are gone.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from eval.errors import EvaluationError
from visiondrop.methods.controls.uniform import sub_grid
from visiondrop.ops.report import Report
from visiondrop.plans.plan import Plan

FEWER = 0.95  # of the visual tokens, from which on a small picture may stay whole


class Lengths:
    """Tokens that the attention of every decoder layer gets in one forward pass.

    Attributes:
        seen: [layers] counts, padding included; 0 where the layer was not called.
    """

    def __init__(self, layers: torch.nn.ModuleList):
        self.layers, self.seen = layers, [0] * len(layers)

    @contextmanager
    def watching(self) -> Iterator["Lengths"]:
        """Count while the block runs; the longest call of a layer is its prefill."""

        def hook(number: int):
            def note(module, args, kwargs):
                hidden = args[0] if args else kwargs["hidden_states"]
                self.seen[number] = max(self.seen[number], hidden.shape[-2])

            return note

        attentions = [layer.self_attn for layer in self.layers]
        handles = [part.register_forward_pre_hook(hook(i), with_kwargs=True) for i, part in enumerate(attentions)]
        try:
            yield self
        finally:
            for handle in handles:
                handle.remove()


def check(seen: list[int], promised: list[int], text: int) -> None:
    """Compare the lengths that were seen with the ledger's.

    Args:
        seen: tokens that every layer's attention gets; promised: visual tokens there; text: all others.

    Raises:
        EvaluationError: they differ.
    """
    for layer, (found, visual) in enumerate(zip(seen, promised, strict=True)):
        if found != visual + text:
            raise EvaluationError(
                f"the decoder does not see what the ledger says: layer {layer} gets {found} tokens, the ledger has {visual} visual "
                f"ones and the prompt {text} others; the method's implementation does not prune as its plan says, nothing was "
                "recorded"
            )


def unlike_uniform(report: Report, plan: Plan) -> float | None:
    """Share of the ids that the last stage kept and a uniform choice of as many would not keep, mean over the report's images.

    None where nothing is chosen, or where the tokens do not lie on one grid.
    """
    kept = [ids for ids in report.stages[-1].sequence if ids is not None] if report.stages else []
    if plan.method == "none" or plan.shape.units != 1 or not kept:
        return None
    shares = []
    for ids in kept:
        grid = sub_grid(plan.shape, len(ids))
        if grid is None:
            return None
        shares.append(1 - len(set(ids.tolist()) & set(grid.tolist())) / len(ids))
    return sum(shares) / len(shares)


def check_fewer(seen: list[int], prompt: int, mean: float, unpruned: float) -> None:
    """Where pictures have any size: some layer must get fewer tokens than the prompt has.

    Args:
        seen: as above; prompt: tokens of the unpruned prompt; mean, unpruned: visual tokens of the ledger.

    Raises:
        EvaluationError: every layer got the whole prompt, and the ledger promises fewer.
    """
    if mean < FEWER * unpruned and min(seen) >= prompt:
        raise EvaluationError(
            f"the decoder does not see what the ledger says: every layer got all {prompt} tokens, the ledger promises {mean:g} of "
            f"{unpruned:g} visual ones; the method's implementation does not prune, nothing was recorded"
        )
