"""What the trainer needs to know of the NeXT-style sibling (see testbed.training.course).

bash scripts/train_testbed.sh --config configs/testbed/next.yaml --out runs/testbed-next
"""

from __future__ import annotations

from pathlib import Path

import torch

from testbed.data.questions import draw_question
from testbed.data.tokenizer import PREFIX
from testbed.next.batches import NextBatches, NextStage, pack
from testbed.next.scenes import SIDE, draw_scene, scene_rng
from testbed.next.sets import KINDS
from testbed.next.views import TOKENS, line_up
from testbed.training.batches import Batch, normalise
from testbed.training.export import export_checkpoint
from testbed.training.losses import answer_losses, compute_losses, to_device
from testbed.training.model import Layout, Sizes, Weights, decode, encode, init_heads, init_weights

VALIDATION_IMAGES, VALIDATION_START = 48, 500_000  # scenes of the validation split that no question set uses
CONTEXT = 4096
SETTINGS = {
    "max_position_embeddings": CONTEXT, "tokenizer_model_max_length": CONTEXT, "unfreeze_mm_vision_tower": True,
    "image_aspect_ratio": "anyres", "mm_patch_merge_type": "spatial", "image_grid_pinpoints": [[SIDE, SIDE]],
}  # fmt: skip


class NextCourse:
    """The testbed of 672-px scenes (LLaVA-NeXT, layout fixed-2880)."""

    stage_class = NextStage

    def new_weights(self, sizes: Sizes, seed: int) -> Weights:
        """The base testbed's parameters: the sibling has no others."""
        return init_weights(sizes, seed) | init_heads(sizes, seed)

    def batches(self, stage: NextStage, number: int) -> NextBatches:
        """Batches by step."""
        return NextBatches(stage, number)

    def losses(self, weights: Weights, sizes: Sizes, batch: Batch, stage: NextStage, dtype, device):
        """Label losses of views in stages without questions, else the losses of the answers."""
        batch = to_device(batch, device)
        if not stage.questions:
            return compute_losses(weights, sizes, batch, stage, dtype)
        cast = {name: value.to(dtype) for name, value in weights.items()}
        with torch.set_grad_enabled(torch.is_grad_enabled() and not stage.frozen):
            features = view_features(cast, sizes, batch.pixels)
        if batch.kept is not None:
            features = features.gather(1, batch.kept[..., None].expand(-1, -1, features.shape[-1]))
        prefix = torch.tensor(PREFIX, device=device)
        layout = Layout(prefix, batch.question_ids, batch.visual_positions, batch.question_start)
        probes = (sizes.layers // 2, sizes.layers * 3 // 4) if stage.bridge else ()
        states, middle = decode(cast, sizes, features, layout, probes, stage.depth)
        loss, report = answer_losses(cast, states, middle, batch, stage.bridge)
        return loss, {name: value.detach() for name, value in report.items()}

    @torch.no_grad()
    def validate(self, weights: Weights, sizes: Sizes, stage: NextStage, dtype, device) -> dict[str, float]:
        """Accuracy by kind at 2,880 tokens, teacher-forced."""
        right: dict[str, list[float]] = {}
        stage = NextStage("validation", 24, 1, 2, questions=1, bridge=0.0, depth=stage.depth)
        for first in range(VALIDATION_START, VALIDATION_START + VALIDATION_IMAGES, stage.batch):
            scenes = [draw_scene("validation", first + i) for i in range(stage.batch)]
            asked = []
            for i, scene in enumerate(scenes):
                rng = scene_rng("validation", first + i, purpose=1)
                drawn = [draw_question(kind, scene, rng) for kind in KINDS for _ in range(3)]
                asked.append([question or draw_question("exist", scene, rng) for question in drawn])
            _, report = self.losses(weights, sizes, pack(scenes, asked), stage, dtype, device)
            for name, value in report.items():
                right.setdefault(name, []).append(float(value))
        return {name: sum(values) / len(values) for name, values in right.items()}

    def export(self, weights: Weights, sizes: Sizes, folder: Path) -> None:
        """The layout of liuhaotian/llava-v1.6 checkpoints: anyres settings, the tower inside."""
        export_checkpoint(weights, sizes, folder, SETTINGS, tower_inside=True)


def view_features(weights: Weights, sizes: Sizes, pixels: torch.Tensor) -> torch.Tensor:
    """Features of the visual sequence [B, 2880, D] from the views' pixels, uint8 [B * 5, 3, 336, 336]."""
    cells = torch.arange(TOKENS // 5, device=pixels.device)
    dtype = weights["model.mm_projector.0.weight"].dtype
    return line_up(encode(weights, sizes, normalise(pixels, dtype), cells)[0])
