"""Training losses of the testbed: the answers, and auxiliary ones that are left out of the checkpoint.

* answer: cross-entropy on the one-word answer, and with weight 0.1 on the end-of-sequence token after it;
* patches: colour, shape and digit of every patch, read linearly from the tower's features;
* objects: which objects and digits the picture holds, read linearly from the [CLS] state (this is what makes [CLS]
  attend to objects; CLIP's contrastive loss has the same effect with captions);
* bridge: for two and three hops, the first hop's result through the final norm and lm_head half-way up the decoder,
  and for three hops the second hop's result at three quarters.
"""

from __future__ import annotations

from dataclasses import fields, replace

import torch
import torch.nn.functional as F

from testbed.data.questions import TRAINING_KINDS
from testbed.data.scenes import NO_COLOR, NO_DIGIT
from testbed.data.tokenizer import PREFIX
from testbed.training.batches import END_ID, IGNORE, Batch, Stage, normalise
from testbed.training.model import Layout, Sizes, Weights, decode, encode

_END_WEIGHT, _BACKGROUND_WEIGHT, _OBJECTS_WEIGHT = 0.1, 0.15, 5.0


def to_device(batch: Batch, device: torch.device) -> Batch:
    """The batch with its tensors on `device`."""
    moved = {f.name: getattr(batch, f.name) for f in fields(batch)}
    return replace(batch, **{name: value.to(device) for name, value in moved.items() if torch.is_tensor(value)})


def compute_losses(weights: Weights, sizes: Sizes, batch: Batch, stage: Stage, dtype: torch.dtype):
    """Total loss (a tensor with gradient), and plain numbers for the log: each loss, each share of right answers."""
    cast = {name: value.to(dtype) for name, value in weights.items()}
    with torch.set_grad_enabled(torch.is_grad_enabled() and not stage.frozen):
        features, cls, attention = encode(cast, sizes, normalise(batch.pixels, dtype), batch.cells)
    total, report = _label_losses(cast, features, cls, batch)
    attention = attention.float()
    report["cls_on_objects"] = (attention * (batch.colors != NO_COLOR)).sum() / attention.sum()
    total = total * stage.labels
    if stage.questions:
        if batch.kept is not None:
            features = features.gather(1, batch.kept[..., None].expand(-1, -1, features.shape[-1]))
        layout = Layout(
            torch.tensor(PREFIX, device=features.device),
            batch.question_ids,
            batch.visual_positions,
            batch.question_start,
        )
        probes = (sizes.layers // 2, sizes.layers * 3 // 4) if stage.bridge else ()
        states, middle = decode(cast, sizes, features, layout, probes, stage.depth)
        loss, more = answer_losses(cast, states, middle, batch, stage.bridge)
        total, report = total + loss, report | more
    return total, {name: value.detach() for name, value in report.items()}


def _label_losses(weights: Weights, features: torch.Tensor, cls: torch.Tensor, batch: Batch):
    """Patch labels and the object set; background patches count little, digits are asked of object patches only."""
    background = batch.colors == NO_COLOR
    weight = torch.where(background, _BACKGROUND_WEIGHT, 1.0).flatten()
    total, report = 0.0, {}
    for name, labels in (("color", batch.colors), ("shape", batch.shapes), ("digit", batch.digits)):
        logits = (features @ weights[f"aux.{name}"].T).float().flatten(0, 1)
        losses = F.cross_entropy(logits, labels.flatten(), reduction="none")
        counted = (~background).flatten().float() if name == "digit" else weight
        total = total + (losses * counted).sum() / counted.sum()
        asked = ~background & (labels != NO_DIGIT) if name == "digit" else ~background
        right = logits.argmax(-1).view_as(labels) == labels
        report[f"patch_{name}"] = (right & asked).sum() / asked.sum().clamp(min=1)
    objects = F.binary_cross_entropy_with_logits((cls @ weights["aux.set"].T).float(), batch.objects)
    report["objects_loss"] = objects
    return total + _OBJECTS_WEIGHT * objects, report


def answer_losses(weights: Weights, states: torch.Tensor, middle: list[torch.Tensor], batch: Batch, bridge: float):
    """Losses of the answers from the states of `decode`, and plain numbers: each loss, right answers by kind."""
    head = weights["lm_head.weight"]
    rows = batch.answer_at[..., None, None].expand(-1, -1, 1, states.shape[-1])
    logits = (states.gather(2, rows)[:, :, 0] @ head.T).float()
    answer = F.cross_entropy(logits.flatten(0, 1), batch.answers.flatten())
    ends = (states.gather(2, rows + 1)[:, :, 0] @ head.T).float()
    total = answer + _END_WEIGHT * F.cross_entropy(ends.flatten(0, 1), torch.full_like(batch.answers, END_ID).flatten())
    report = {"answer_loss": answer}
    for hop, early in enumerate(middle if bridge else ()):
        words = batch.bridges[..., hop].flatten()
        if bool((words != IGNORE).any()):
            logits_early = (early.gather(2, rows)[:, :, 0] @ head.T).float().flatten(0, 1)
            report[f"bridge{hop + 1}_loss"] = F.cross_entropy(logits_early, words, ignore_index=IGNORE)
            total = total + bridge * report[f"bridge{hop + 1}_loss"]
    right = logits.argmax(-1) == batch.answers
    for number, kind in enumerate(TRAINING_KINDS):
        asked = batch.kinds == number
        if bool(asked.any()):
            report[kind] = right[asked].float().mean()
    return total, report
