"""Training losses of the testbed: the answers, and auxiliary ones that are left out of the checkpoint.

* answer: cross-entropy on the words of the answer, and with weight 0.1 on the end-of-sequence token after them;
* patches: colour, shape and digit (of a clip: role) of every patch, read linearly from the tower's features;
* objects: which objects and digits the picture holds, read linearly from the [CLS] state (this is what makes [CLS]
  attend to objects; CLIP's contrastive loss has the same effect with captions);
* bridge: for two and three hops, the first hop's result through the final norm and lm_head half-way up the decoder,
  and for three hops the second hop's result at three quarters.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F

from testbed.data.tokenizer import PREFIX
from testbed.training.batches import END_ID, IGNORE, Batch, Seen, Stage, Views
from testbed.training.model import Layout, Sizes, Weights, decode

_END_WEIGHT, _BACKGROUND_WEIGHT, _OBJECTS_WEIGHT = 0.1, 0.15, 5.0


def compute_losses(
    weights: Weights, sizes: Sizes, batch: Batch, stage: Stage, dtype: torch.dtype, views: Views, kinds: tuple[str, ...]
) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """Total loss (a tensor with gradient), and plain numbers for the log: each loss, each share of right answers.

    views: of the course; kinds: those that `batch.kinds` numbers.
    """
    cast = {name: value.to(dtype) for name, value in weights.items()}
    with torch.set_grad_enabled(torch.is_grad_enabled() and not stage.frozen):
        seen = views.encode(cast, sizes, batch)
    total, report = 0.0, {}
    if seen.attention is not None:
        total, report = label_losses(cast, seen, batch)
        total = total * stage.labels
    if stage.questions:
        probes = (sizes.layers // 2, sizes.layers * 3 // 4) if stage.bridge else ()
        states, middle = answer_states(cast, sizes, seen.tokens, batch, probes, stage.depth)
        loss, more = answer_losses(cast, states, middle, batch, stage.bridge, kinds)
        total, report = total + loss, report | more
    return total, {name: value.detach() for name, value in report.items()}


def answer_states(weights: Weights, sizes: Sizes, tokens: torch.Tensor, batch: Batch, probes=(), depth: int = 0):
    """What `decode` makes of the questions after the visual tokens [B, V, D], or after those that the batch keeps."""
    if batch.kept is not None:
        tokens = tokens.gather(1, batch.kept[..., None].expand(-1, -1, tokens.shape[-1]))
    prefix = torch.tensor(PREFIX, device=tokens.device)
    layout = Layout(prefix, batch.question_ids, batch.visual_positions, batch.question_start)
    return decode(weights, sizes, tokens, layout, probes, depth)


def label_losses(weights: Weights, seen: Seen, batch: Batch):
    """Patch labels and the object set; background patches count little, digits are asked of object patches only."""
    weight = torch.where(batch.shown, 1.0, _BACKGROUND_WEIGHT).flatten()
    total, report = 0.0, {}
    for name, labels in batch.labels.items():
        logits = (seen.patches @ weights[f"aux.{name}"].T).float().flatten(0, -2)
        losses = F.cross_entropy(logits, labels.flatten(), reduction="none")
        counted = batch.shown.flatten().float() if name == "digit" else weight
        total = total + (losses * counted).sum() / counted.sum()
        asked = batch.shown & (labels != logits.shape[1] - 1)  # the last class means "nothing"
        right = logits.argmax(-1).view_as(labels) == labels
        report[f"patch_{name}"] = (right & asked).sum() / asked.sum().clamp(min=1)
    sets = (seen.summary @ weights["aux.set"].T).float()
    report["objects_loss"] = F.binary_cross_entropy_with_logits(sets, batch.objects)
    attention = seen.attention.float()
    report["cls_on_objects"] = (attention * batch.shown).sum() / attention.sum()
    return total + _OBJECTS_WEIGHT * report["objects_loss"], report


def answer_losses(
    weights: Weights,
    states: torch.Tensor,
    middle: list[torch.Tensor],
    batch: Batch,
    bridge: float,
    kinds: tuple[str, ...],
):
    """Losses of the answers from the states of `decode`, and plain numbers: each loss, right answers by kind."""
    head = weights["lm_head.weight"]
    width, words = states.shape[-1], batch.answers.shape[-1]

    def read(states: torch.Tensor, at: torch.Tensor) -> torch.Tensor:
        """Logits [B, Q, K, words] of what stands after the places `at` [B, Q, K]."""
        some = states.flatten(0, 1).gather(1, at.flatten(0, 1)[..., None].expand(-1, -1, width))
        return (some.view(*at.shape, width) @ head.T).float()

    last = batch.answer_at + (batch.answers != IGNORE).sum(-1)
    steps = batch.answer_at[..., None] + torch.arange(words, device=states.device)
    logits = read(states, steps.clamp(max=states.shape[2] - 1))
    answer = F.cross_entropy(logits.flatten(0, 2), batch.answers.flatten(), ignore_index=IGNORE)
    ends = read(states, last[..., None]).flatten(0, 2)
    total = answer + _END_WEIGHT * F.cross_entropy(ends, torch.full_like(last, END_ID).flatten())
    report = {"answer_loss": answer}
    for hop, early in enumerate(middle if bridge else ()):
        words = batch.bridges[..., hop].flatten()
        if bool((words != IGNORE).any()):
            logits_early = read(early, batch.answer_at[..., None]).flatten(0, 2)
            report[f"bridge{hop + 1}_loss"] = F.cross_entropy(logits_early, words, ignore_index=IGNORE)
            total = total + bridge * report[f"bridge{hop + 1}_loss"]
    right = ((logits.argmax(-1) == batch.answers) | (batch.answers == IGNORE)).all(-1)
    for number, kind in enumerate(kinds):
        asked = batch.kinds == number
        if bool(asked.any()):
            report[kind] = right[asked].float().mean()
    return total, report
