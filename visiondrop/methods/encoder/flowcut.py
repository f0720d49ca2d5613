"""FlowCut (NeurIPS 2025): tokens are cut inside the vision tower, where [CLS] has gathered what they say.

Source: `TungChintao/FlowCut`, commit a2ecd24 (docs/methods/flowcut.md): after every other tower layer, counted back from the
feature layer, a share of the patches goes that grows as the attention of [CLS] becomes uneven; which, says a running score of
all layers so far.  T patches are left before the feature layer; they enter the LLM unchanged, in raster order, without [CLS].
Beyond the original: how many go is found picture by picture (over its own units), so that none changes for its neighbours in
a batch; float32 scores in every dtype, no NaN where a weight underflows, and equal scores go to the smallest patch.
"""

from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Tensor

from ...errors import VisionDropError
from ...ops.scores import attention_rows
from ...ops.selection import Selection, ranked
from ...plans.plan import EncoderStage, Kept, Plan, Stage, TowerStage, View
from ...plans.schedule import per_unit, scale_layers
from ...plans.shape import VisualShape
from ..method import Method
from ..registry import register

LAYER = 2  # of 32, the cut in the language model of LLaVA-NeXT
CROPS = ("anyres", "fixed")  # layouts of LLaVA-NeXT
MEMORY = 0.5  # share of the score so far in the next one


@register("flowcut")
@dataclass(frozen=True, kw_only=True)
class FlowCut(Method):
    """Every unit (crop, frame) sends T patches to the decoder, T = budget / number of units."""

    def plan(self, tokens: int | None, shape: VisualShape) -> Plan | None:
        """Stages inside the tower, and one after it that leaves [CLS] behind.  None: budget out of reach."""
        self.one_way(tokens)
        check_tower(shape)
        if shape.kind == "image" and (shape.units > 1 or shape.source.startswith(CROPS)):
            return self._crops(tokens, shape)
        count = per_unit(tokens, shape)
        if count is None:
            return None
        if count == shape.patches:
            return Plan("flowcut", shape)
        stages = tower_stages(count, shape)
        return Plan("flowcut", shape, encoder=EncoderStage(Kept(count), patches, "raster"), tower=stages, notes=(NOTE,))

    def _crops(self, tokens: int, shape: VisualShape) -> Plan | None:
        """LLaVA-NeXT as the authors have it: half of T from every crop, and T of the whole picture from layer 2 on."""
        count, (layer,) = min(tokens // 2, shape.patches), scale_layers((LAYER,), shape.layers)
        if not 1 <= count < shape.patches or layer < 1:
            return None
        order = "packed" if shape.source == "anyres" else "raster"
        plan = Plan(
            "flowcut", shape, encoder=EncoderStage(Kept(count), patches, order), tower=tower_stages(count, shape)
        )
        cut_again = Stage(layer, Kept(min(tokens, plan.entry)), by_last_token, layer - 1, "row")
        notes = (
            NOTE,
            f"{count} of every crop, less what is in padding, stand before layer {layer}, and {tokens} behind it",
        )
        return replace(plan, stages=(cut_again,), text_guided=True, scaled=False, notes=notes)


NOTE = (
    "how many rows the tower's layers lose before the last cut depends on the picture; FLOPs count the most they can hold, and "
    "static shapes (compile) are not to be had"
)


def check_tower(shape: VisualShape) -> None:
    """Refuse towers that cannot be cut."""
    if not shape.cls:
        raise VisionDropError("method 'flowcut' reads what the tower's [CLS] attends to, and this tower has no [CLS]")
    if shape.kind == "video" and shape.source == "video":
        raise VisionDropError(
            "method 'flowcut' cuts inside the tower, frame by frame, and this tower attends over time, from each patch to the "
            "same patch of all frames: choose a method that acts after the tower, e.g. vispruner"
        )
    if shape.feature_layer < 1:
        raise VisionDropError(
            f"method 'flowcut' needs two tower layers; features are read from layer {shape.feature_layer}"
        )


def tower_stages(count: int, shape: VisualShape) -> tuple[TowerStage, ...]:
    """A cut after every layer that stands an odd number of layers before the feature layer; the last leaves `count`."""
    last, whole = shape.feature_layer - 1, shape.patches + 1
    stages, seen = [], 0
    for layer in range(last % 2, last + 1, 2):
        ahead = last - layer
        stages.append(
            TowerStage(
                layer,
                Kept(whole if ahead else count + 1),
                partial(cut, target=count, ahead=ahead, layers=tuple(range(seen, layer + 1))),
                probes=tuple(range(seen, layer + 1)),
                adaptive=ahead > 0,
            )
        )
        seen = layer + 1
    return tuple(stages)


def cut(view: View, kept: Kept, target: int, ahead: int, layers: tuple[int, ...]) -> Selection:
    """The patches with the best running score, as many as `left` says, in raster order, and [CLS].

    Args:
        view: of one picture where `ahead` is above 0: one number is read from the device.
        target: patches left in the end; ahead: layers between this cut and the last; layers: seen since the cut before.
    """
    for layer in layers:
        relation, score = flow(view.at(layer))
        running = view.memory.get("running")
        view.memory["running"] = score if running is None else MEMORY * running + (1 - MEMORY) * score
    running = view.memory["running"]
    chosen = ranked(running, left(relation, target, ahead)).sort(dim=1).values  # [U, m]
    view.memory["running"] = running.gather(1, chosen)
    return Selection(index=torch.nn.functional.pad(chosen + 1, (1, 0)), scores=running)


def flow(layer: View) -> tuple[Tensor, Tensor]:
    """Attention of [CLS] in one tower layer, and the score of that layer, each [U, n] float32."""
    relation = layer.score()
    value = layer.value.float()  # [U, H, 1 + n, E]
    meaning = (value[:, :, :1] @ value.transpose(2, 3)).softmax(dim=-1).mean(dim=1)[:, 0, 1:]
    length = value.mean(dim=1)[:, 1:].abs().sum(dim=-1)
    return relation, (_share(relation) + _share(meaning)) * length


def left(relation: Tensor, target: int, ahead: int) -> int:
    """Patches after a cut: fewer, the more uneven the attention of [CLS] is in the unit where it is most so.

    Args:
        relation: [U, n] attention of [CLS], float32; target: patches left in the end; ahead: 0 = this is the end.
    """
    count = relation.shape[1]
    if ahead == 0 or count <= target:
        return min(count, target)
    share = _share(relation)
    evenness = -torch.xlogy(share, share).sum(dim=1) / torch.log(torch.tensor(float(count), device=share.device))
    gone = ((count - target) / ahead**0.5 * (1 - evenness**2)).round()
    return max(count - int(gone.amax()), target)


def by_last_token(view: View, kept: Kept) -> Selection:
    """The `kept.dominant` visual tokens that the prompt's last one meets most, by attention among them and by values."""
    met = view.last_token()
    relation = attention_rows(met.query, met.key, met.scale, None)[:, 0]
    meaning = attention_rows(met.own_value.float(), met.value.float(), met.scale, None)[:, 0]
    length = met.value.float().mean(dim=1).abs().sum(dim=-1)
    scores = (_share(relation) + _share(meaning)) * length  # [I, n]
    return Selection(index=ranked(scores, kept.dominant).sort(dim=1).values, scores=scores)


def patches(view: View, kept: Kept) -> Selection:
    """Every patch that is left, in raster order, without [CLS]."""
    units, rows = view.hidden.shape[:2]
    return Selection(index=torch.arange(1, rows, device=view.hidden.device).expand(units, -1))


def _share(x: Tensor) -> Tensor:
    """x [U, n] divided by its sum; zeros where [CLS] looks at itself alone."""
    return x / x.sum(dim=1, keepdim=True).clamp(min=torch.finfo(torch.float32).tiny)
