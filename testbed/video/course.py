"""How the video sibling is trained: a course as testbed.training.course describes it.

Losses: the answers; and, read linearly from the tower's features and left out of the checkpoint, colour, shape and role
(still, moves, appears, changes) of every patch of every frame, and the objects of every frame from its [CLS].
"""

from __future__ import annotations

from pathlib import Path

import torch
import torch.nn.functional as F

from testbed.data.scenes import NO_COLOR, NO_SHAPE
from testbed.data.tokenizer import PREFIX
from testbed.training.batches import CLIP_MEAN, CLIP_STD
from testbed.training.losses import to_device
from testbed.training.model import Layout, Sizes, Weights, decode, init_weights
from testbed.video.batches import END_ID, VideoBatch, VideoBatches, VideoStage, pack
from testbed.video.export import export_checkpoint
from testbed.video.questions import KINDS, draw_question
from testbed.video.scenes import GRID, NO_ROLE, PATCHES, clip_rng, draw_clip
from testbed.video.tower import encode_video, temporal_weights

VALIDATION_CLIPS, VALIDATION_START = 32, 500_000  # clips of the validation split that no question set uses
_END_WEIGHT, _BACKGROUND_WEIGHT, _OBJECTS_WEIGHT = 0.1, 0.15, 5.0


class VideoCourse:
    """Eight 224-px frames in the layout of Video-LLaVA."""

    stage_class = VideoStage

    def new_weights(self, sizes: Sizes, seed: int) -> Weights:
        """The testbed's weights, the attention over time and the readouts of the auxiliary losses."""
        generator = torch.Generator().manual_seed(seed + 1)
        rows = {"color": NO_COLOR + 1, "shape": NO_SHAPE + 1, "role": NO_ROLE + 1, "set": NO_COLOR * NO_SHAPE}
        heads = {f"aux.{k}": torch.randn(n, sizes.vision_width, generator=generator) * 0.02 for k, n in rows.items()}
        return init_weights(sizes, seed) | temporal_weights(sizes, seed + 2) | heads

    def batches(self, stage: VideoStage, number: int) -> VideoBatches:
        """Batches by step."""
        return VideoBatches(stage, number)

    def losses(
        self, weights: Weights, sizes: Sizes, batch: VideoBatch, stage: VideoStage, dtype: torch.dtype, device
    ) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        """Total loss with gradient, and plain numbers for the log."""
        batch = to_device(batch, device)
        cast = {name: value.to(dtype) for name, value in weights.items()}
        with torch.set_grad_enabled(torch.is_grad_enabled() and not stage.frozen):
            features, attention = encode_video(cast, sizes, normalised(batch.patches, dtype), batch.cells)
        total, report = _label_losses(cast, features, batch)
        attention = attention.float()
        report["cls_on_objects"] = (attention * (batch.roles != NO_ROLE)).sum() / attention.sum()
        total = total * stage.labels
        if stage.questions:
            states = answer_states(cast, sizes, features, batch, stage.depth)
            loss, more = _answer_losses(cast["lm_head.weight"], states, batch)
            total, report = total + loss, report | more
        return total, {name: value.detach() for name, value in report.items()}

    def validate(
        self, weights: Weights, sizes: Sizes, stage: VideoStage, dtype: torch.dtype, device
    ) -> dict[str, float]:
        """Accuracy per kind with all 2,056 visual tokens, teacher-forced."""
        whole = VideoStage("validation", GRID, 1, 1, questions=1, depth=stage.depth)
        hits: dict[str, list[float]] = {}
        for index in range(VALIDATION_START, VALIDATION_START + VALIDATION_CLIPS):
            clip, rng = draw_clip("validation", index), clip_rng("validation", index, purpose=1)
            asked = [draw_question(kind, clip, rng) for kind in KINDS for _ in range(2)]
            batch = pack([clip], [[question for question in asked if question]], all_places(1))
            _, report = self.losses(weights, sizes, batch, whole, dtype, device)
            for name, value in report.items():
                hits.setdefault(name, []).append(float(value))
        return {name: sum(values) / len(values) for name, values in hits.items()}

    def export(self, weights: Weights, sizes: Sizes, folder: Path) -> None:
        """The checkpoint in the original Video-LLaVA layout, float16."""
        export_checkpoint(weights, sizes, folder)


def all_places(clips: int):
    """All 256 patch positions of `clips` clips, int64 [clips, 256] (numpy)."""
    return torch.arange(PATCHES).expand(clips, -1).numpy()


def normalised(patches: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """uint8 [..., 588] to what llava.video.video_pixels gives at full size."""
    mean, std = (torch.tensor(values, device=patches.device)[:, None] for values in (CLIP_MEAN, CLIP_STD))
    return ((patches.unflatten(-1, (3, -1)).float() / 255 - mean) / std).flatten(-2).to(dtype)


def answer_states(
    weights: Weights, sizes: Sizes, features: torch.Tensor, batch: VideoBatch, depth: int = 0
) -> torch.Tensor:
    """Final states of the questions' tokens [B, Q, T, D] from the tower's features [B, F, R, D]."""
    tokens = features.flatten(1, 2)
    if batch.kept is not None:
        tokens = tokens.gather(1, batch.kept[..., None].expand(-1, -1, tokens.shape[-1]))
    prefix = torch.tensor(PREFIX, device=tokens.device)
    layout = Layout(prefix, batch.question_ids, batch.visual_positions, batch.question_start)
    return decode(weights, sizes, tokens, layout, depth=depth)[0]


def _label_losses(weights: Weights, features: torch.Tensor, batch: VideoBatch):
    """Losses of the patch labels, in which background counts little, and of each frame's objects."""
    shown = batch.roles != NO_ROLE
    weight = torch.where(shown, 1.0, _BACKGROUND_WEIGHT).flatten()
    total, report = 0.0, {}
    for name, labels in (("color", batch.colors), ("shape", batch.shapes), ("role", batch.roles)):
        logits = (features[:, :, 1:] @ weights[f"aux.{name}"].T).float().flatten(0, 2)
        losses = F.cross_entropy(logits, labels.flatten(), reduction="none")
        total = total + (losses * weight).sum() / weight.sum()
        right = (logits.argmax(-1) == labels.flatten()) & shown.flatten()
        report[f"patch_{name}"] = right.sum() / shown.sum()
    sets = (features[:, :, 0] @ weights["aux.set"].T).float()
    report["objects_loss"] = F.binary_cross_entropy_with_logits(sets, batch.objects)
    return total + _OBJECTS_WEIGHT * report["objects_loss"], report


def _answer_losses(head: torch.Tensor, states: torch.Tensor, batch: VideoBatch):
    """Cross-entropy on the answers and, weakly, on the end-of-sequence token behind them."""
    rows = batch.answer_at[..., None, None].expand(-1, -1, 1, states.shape[-1])
    logits = (states.gather(2, rows)[:, :, 0] @ head.T).float()
    ends = (states.gather(2, rows + 1)[:, :, 0] @ head.T).float()
    answer = F.cross_entropy(logits.flatten(0, 1), batch.answers.flatten())
    end = F.cross_entropy(ends.flatten(0, 1), torch.full_like(batch.answers, END_ID).flatten())
    report = {"answer_loss": answer}
    right = logits.argmax(-1) == batch.answers
    for number, kind in enumerate(KINDS):
        asked = batch.kinds == number
        if bool(asked.any()):
            report[kind] = right[asked].float().mean()
    return answer + _END_WEIGHT * end, report
