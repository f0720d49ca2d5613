"""Trains the testbed model from scratch, or one of its siblings from it; step-based, resumable, on a CPU or a GPU.

    python -m testbed.training.train --out runs/testbed                 # the schedule of configs/testbed/default.yaml
    python -m testbed.training.train --out runs/next --config configs/testbed/next.yaml
    python -m testbed.training.train --out runs/testbed --steps 30000   # the same stages, longer; continues what is there

`--out` holds state.pt (everything needed to go on), log.jsonl (one line per 50 steps and one per validation) and, at
the end, checkpoint/ in the original LLaVA layout. Stopping with Ctrl-C or SIGTERM loses nothing but the current step.
The data and its order are exact; the arithmetic is bfloat16 where the machine has it, so two machines agree closely,
not bit by bit.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import sys
import time
from dataclasses import dataclass, fields, replace
from pathlib import Path

import torch
import yaml
from tqdm import tqdm

from testbed.training.batches import Stage
from testbed.training.course import course_of
from testbed.training.model import Sizes
from visiondrop.errors import VisionDropError, command_line

LOG_EVERY, SAVE_EVERY, VALIDATE_EVERY = 50, 200, 400
ROOT = Path(__file__).resolve().parents[2]
DEFAULT_CONFIG = ROOT / "configs" / "testbed" / "default.yaml"


@dataclass(frozen=True)
class Recipe:
    """A training configuration: random seed, sizes of the model and the stages of the curriculum.

    course: see testbed.training.course; start: checkpoint folder to begin from, relative to the repository, or None.
    """

    seed: int
    sizes: Sizes
    stages: tuple[Stage, ...]
    course: str = "base"
    start: str | None = None


def load_recipe(path: Path, steps: int | None = None) -> Recipe:
    """Reads a configuration; `steps` scales the stages to that many steps in total."""
    try:
        raw = yaml.safe_load(Path(path).read_text())
    except OSError as error:
        raise VisionDropError(f"cannot read the training configuration {path}: {error.strerror}.") from error
    _check_keys(raw, {f.name for f in fields(Recipe)}, path)
    for stage in raw["stages"]:
        _check_keys(stage, {f.name for f in fields(Stage)}, path)
    _check_keys(raw.get("sizes", {}), {f.name for f in fields(Sizes)}, path)
    stages = tuple(Stage(**stage) for stage in raw["stages"])
    if steps is not None:
        factor = steps / sum(stage.steps for stage in stages)
        stages = tuple(replace(stage, steps=max(1, round(stage.steps * factor))) for stage in stages)
    return Recipe(
        raw.get("seed", 0), Sizes(**raw.get("sizes", {})), stages, raw.get("course", "base"), raw.get("start")
    )


def _check_keys(given: dict, known, path: Path) -> None:
    unknown = sorted(set(given) - set(known))
    if unknown:
        raise VisionDropError(f"{path} has unknown keys {unknown}: use some of {sorted(known)}.")


class Trainer:
    """Weights, optimiser and place in the curriculum; `run()` goes on from there."""

    def __init__(self, recipe: Recipe, out: Path, device: torch.device, dtype: torch.dtype, workers: int = 1) -> None:
        self.recipe, self.out, self.device, self.dtype, self.workers = recipe, Path(out), device, dtype, workers
        self.out.mkdir(parents=True, exist_ok=True)
        self.course = course_of(recipe.course)
        weights = self.course.new_weights(recipe.sizes, recipe.seed)
        if recipe.start is not None and not self.state_path.exists():
            weights = self.course.begin(weights, ROOT / recipe.start)
        self.weights = {name: value.to(device).requires_grad_() for name, value in weights.items()}
        matrices = [value for value in self.weights.values() if value.ndim > 1]
        vectors = [value for value in self.weights.values() if value.ndim == 1]
        groups = [{"params": matrices, "weight_decay": 0.03}, {"params": vectors, "weight_decay": 0.0}]
        self.optimizer = torch.optim.AdamW(groups, lr=1e-3, betas=(0.9, 0.97), eps=1e-8, fused=True)
        self.stage, self.step, self.seconds, self.images = 0, 0, 0.0, 0
        self.stopping = False
        if self.state_path.exists():
            self._resume()

    @property
    def state_path(self) -> Path:
        """Where everything needed to continue lies."""
        return self.out / "state.pt"

    @property
    def log_path(self) -> Path:
        """One JSON object per line."""
        return self.out / "log.jsonl"

    def run(self) -> bool:
        """Trains to the end of the last stage; False when asked to stop before."""
        while self.stage < len(self.recipe.stages):
            if not self._run_stage(self.recipe.stages[self.stage]):
                return False
            if self.stage == len(self.recipe.stages) - 1:
                break
            self.stage, self.step = self.stage + 1, 0
        self.save()
        return True

    def _run_stage(self, stage: Stage) -> bool:
        batches = torch.utils.data.DataLoader(
            self.course.batches(stage, self.stage),
            batch_size=None,
            sampler=range(self.step, stage.steps),
            num_workers=self.workers,
            prefetch_factor=4 if self.workers else None,
            worker_init_fn=_outlive_signals,
        )
        sums: dict[str, list[float]] = {}
        bar = tqdm(batches, desc=stage.name, initial=self.step, total=stage.steps, mininterval=10, dynamic_ncols=True)
        began = time.monotonic()
        for batch in bar:
            loss, report = self._update(stage, batch)
            for name, value in report.items():
                sums.setdefault(name, []).append(float(value))
            self.step += 1
            self.images += stage.batch
            now = time.monotonic()
            self.seconds, began = self.seconds + now - began, now
            if self.step % LOG_EVERY == 0 or self.step == stage.steps:
                means = {name: sum(values) / len(values) for name, values in sums.items()}
                self._log("train", {"loss": loss} | means)
                bar.set_postfix({k: f"{means[k]:.2f}" for k in ("exist", "digit", "count", "hop2") if k in means})
                sums = {}
            if stage.questions and (self.step % VALIDATE_EVERY == 0 or self.step == stage.steps):
                self._log("validation", self.validate(stage))
            if self.step % SAVE_EVERY == 0 or self.stopping:
                self.save()
            if self.stopping:
                return self.step == stage.steps and self.stage == len(self.recipe.stages) - 1
        return True

    def _update(self, stage: Stage, batch) -> tuple[float, dict[str, torch.Tensor]]:
        loss, report = self.course.losses(self.weights, self.recipe.sizes, batch, stage, self.dtype, self.device)
        if not bool(torch.isfinite(loss)):
            raise VisionDropError(
                f"the loss became {float(loss)} at step {self.step} of stage {stage.name}: lower its rate."
            )
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_([v for v in self.weights.values() if v.grad is not None], 1.0)
        done = self.step / stage.steps
        rate = (stage.rate + (stage.end_rate - stage.rate) * done) * min(1.0, (self.step + 1) / stage.warmup)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        self.optimizer.step()
        return float(loss.detach()), report

    @torch.no_grad()
    def validate(self, stage: Stage) -> dict[str, float]:
        """Accuracy per kind at the full token count on fresh scenes of the validation split, teacher-forced."""
        return self.course.validate(self.weights, self.recipe.sizes, stage, self.dtype, self.device)

    def save(self) -> None:
        """Writes state.pt in one move, so that a full disk or a kill leaves the older one."""
        state = {
            "weights": {name: value.detach() for name, value in self.weights.items()},
            "optimizer": self.optimizer.state_dict(),
            "sizes": self.recipe.sizes.as_dict(),
            "seed": self.recipe.seed,
            "stage": self.stage,
            "step": self.step,
            "seconds": self.seconds,
            "images": self.images,
        }
        fresh = self.state_path.with_suffix(".new")
        try:
            torch.save(state, fresh)
            os.replace(fresh, self.state_path)
        except OSError as error:
            raise VisionDropError(
                f"cannot save the training state in {self.out}: {error.strerror}; free space and start again."
            ) from error

    def _resume(self) -> None:
        state = torch.load(self.state_path, map_location=self.device, weights_only=True)
        if state["sizes"] != self.recipe.sizes.as_dict() or state["seed"] != self.recipe.seed:
            raise VisionDropError(
                f"{self.state_path} was trained with other sizes or another seed: choose an empty --out folder."
            )
        with torch.no_grad():
            for name, value in self.weights.items():
                value.copy_(state["weights"][name])
        self.optimizer.load_state_dict(state["optimizer"])
        self.stage, self.step = state["stage"], state["step"]
        self.seconds, self.images = state["seconds"], state["images"]
        if self.log_path.exists():  # lines written after the state was saved will be written again
            lines = [json.loads(line) for line in self.log_path.read_text().splitlines()]
            kept = [line for line in lines if (line["stage_number"], line["step"]) <= (self.stage, self.step)]
            self.log_path.write_text("".join(json.dumps(line) + "\n" for line in kept))

    def _log(self, what: str, values: dict[str, float]) -> None:
        row = {
            "what": what,
            "stage": self.recipe.stages[self.stage].name,
            "stage_number": self.stage,
            "step": self.step,
            "images": self.images,
            "seconds": round(self.seconds, 1),
            "rate": self.optimizer.param_groups[0]["lr"],
        }
        with self.log_path.open("a") as file:
            file.write(json.dumps(row | {name: round(value, 4) for name, value in values.items()}) + "\n")


def _outlive_signals(worker: int) -> None:
    """Ctrl-C and a `kill` of the group reach every process: only the trainer heeds them, and it needs its batches for
    the current step; it ends the workers itself.
    """
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)


def pick_device(name: str) -> tuple[torch.device, torch.dtype]:
    """("auto" | "cpu" | "cuda") to a device and the arithmetic used there."""
    device = torch.device(name if name != "auto" else "cuda" if torch.cuda.is_available() else "cpu")
    fast = device.type == "cuda" or torch.ops.mkldnn._is_mkldnn_bf16_supported()
    return device, torch.bfloat16 if fast else torch.float32


@command_line
def main(argv: list[str] | None = None) -> int:
    """Command line; returns the exit status."""
    parser = argparse.ArgumentParser(description="Train the testbed model (resumes when --out holds a state).")
    parser.add_argument("--out", type=Path, required=True, help="folder for state, log and checkpoint")
    parser.add_argument("--config", type=Path, default=DEFAULT_CONFIG)
    parser.add_argument("--steps", type=int, help="total number of steps; stages keep their proportions")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads(), help="CPU threads")
    parser.add_argument("--workers", type=int, default=1, help="processes that draw scenes")
    parser.add_argument("--device", default="auto", choices=("auto", "cpu", "cuda"))
    args = parser.parse_args(argv)
    torch.set_num_threads(args.threads)
    trainer = Trainer(load_recipe(args.config, args.steps), args.out, *pick_device(args.device), args.workers)
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: setattr(trainer, "stopping", True))
    if not trainer.run():
        print(f"stopped at step {trainer.step} of stage {trainer.stage}; the same command goes on from there.")
        return 0
    trainer.course.export(trainer.weights, trainer.recipe.sizes, args.out / "checkpoint")
    return 0


if __name__ == "__main__":
    sys.exit(main())
