"""The main job in five minutes: VisionDrop at 64 tokens against the unpruned model and random pruning, offline.

    bash scripts/quickstart.sh            (or, in an environment that is there already: python -m testbed.quickstart)

Runs the testbed's quick set (500 drawn questions, a small model trained by us) through the ordinary driver, prints a
table with intervals and tokens per layer, and draws what each stage keeps on three scenes.  The testbed is a stand-in:
none of its numbers says what a 7B model would score.
"""

import argparse
import subprocess
import sys
from pathlib import Path

from eval import benchmarks
from eval.errors import EvaluationError
from eval.files import ROOT
from eval.results import rows
from visiondrop.doctor import require_evaluation
from visiondrop.errors import command_line

BENCHMARK = "testbed_quick"
NOTE = (
    "Testbed: a small model trained by us on drawn scenes, unpruned. A stand-in: no 7B number follows from it.\n"
    "Three-hop questions (hop3) are learned in part only; see checkpoints/testbed/README.md."
)
SCENES = (100_003, 100_011, 100_020)  # of the quick set's split


def compared(tokens: int) -> list[tuple[str, int | None]]:
    """(method, budget) of the rows, in the order of the table."""
    return [("none", None), ("visiondrop", tokens), ("random", tokens)]


def run(method: str, tokens: int | None, out: Path, runs: Path, more: list[str]) -> dict:
    """One run of the driver, or the one that is finished already; returns its row."""
    command = [sys.executable, "-m", "eval.run", BENCHMARK, "--method", method, "--batch-size", "8"]
    command += [] if tokens is None else ["--tokens", str(tokens)]
    command += ["--out", str(out), "--runs", str(runs), *more]
    print(f"\n== {method}" + ("" if tokens is None else f", {tokens} tokens"), flush=True)
    if subprocess.run(command, cwd=ROOT).returncode:
        raise EvaluationError(f"the run of {method} failed; its message stands above")
    wanted = (BENCHMARK, method, tokens, "--limit" in more)
    found = [r for r in rows.load(out)[0] if (r["benchmark"], r["method"], r["tokens"], r["partial"]) == wanted]
    return found[-1]


def table(found: list[dict]) -> str:
    """Accuracy with its interval and the tokens of every layer, one line per method."""
    lines = [f"{'method':<12}{'accuracy':>9}  {'95 % interval':<16}{'mean tokens':>11}  tokens per layer"]
    for row in found:
        low, high = row["interval"]
        per_layer = row["ledger"]["tokens_per_layer"]
        runs = " ".join(f"{n}x{per_layer.count(n)}" for n in dict.fromkeys(per_layer))
        between = f"{low:.1f} … {high:.1f}"
        lines.append(f"{row['method']:<12}{row['score']:>8.1f}%  {between:<16}{row['ledger']['mean']:>11.1f}  {runs}")
    kinds = [k for k in found[0]["metrics"] if k != "exact_match"]
    lines.append("\nby kind of question, %: " + ", ".join(kinds))
    for row in found:
        lines.append(f"{row['method']:<12}" + "  ".join(f"{100 * row['metrics'][k]:5.1f}" for k in kinds))
    return "\n".join(lines)


def draw(tokens: int, model: str, folder: Path) -> list[Path]:
    """Pictures of the kept patches per stage on three scenes."""
    import torch
    from PIL import Image

    import visiondrop
    from llava.mm_utils import process_images
    from llava.model.builder import load_pretrained_model
    from testbed.data.scenes import draw_scene
    from visiondrop.demo.show import CELL, square
    from visiondrop.demo.show import draw as draw_report

    _, network, processor, _ = load_pretrained_model(model, None, "llava", device_map="cpu", torch_dtype=torch.float32)
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    with visiondrop.apply(network, tokens=tokens, report=True) as handle, torch.no_grad():
        for number in SCENES:
            scene = Image.fromarray(draw_scene("test", number).image)
            ids = torch.tensor([[network.config.bos_token_id, -200]])  # the choice does not depend on the question
            network(input_ids=ids, images=process_images([scene], processor, network.config))
            paths.append(folder / f"scene{number}.png")
            side = network.get_vision_tower().num_patches_per_side
            draw_report([square(scene, side * CELL)], side, handle.report, str(paths[-1]))
    return paths


@command_line
def main(argv: list[str] | None = None) -> int:
    """Command line; returns the exit status."""
    parser = argparse.ArgumentParser(description="VisionDrop against unpruned and random, on the testbed's quick set.")
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--out", type=Path, default=ROOT / "results" / "local.jsonl")
    parser.add_argument("--runs", type=Path, default=ROOT / "results" / "runs")
    parser.add_argument("--model", help="another checkpoint of the testbed, e.g. one trained longer")
    parser.add_argument("--limit", type=int, help="only the first N questions (for tests)")
    args = parser.parse_args(argv)
    require_evaluation()
    model = args.model or benchmarks.get(BENCHMARK, "offline").default_model
    more = ["--model", model] + ([] if args.limit is None else ["--limit", str(args.limit)])
    found = [run(method, tokens, args.out, args.runs, more) for method, tokens in compared(args.tokens)]
    print("\n" + table(found))
    print("\n" + NOTE)
    for path in draw(args.tokens, model, args.runs / "quickstart"):
        print(f"kept patches per stage: {path}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
