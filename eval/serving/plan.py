"""How many GPUs a load of pictures needs, unpruned and pruned: measured cards, a roofline fitted to them, a simulated queue."""

import argparse
import re
import statistics
from dataclasses import dataclass, replace
from pathlib import Path

import visiondrop
from eval.efficiency import record
from eval.errors import EvaluationError
from eval.files import ROOT
from visiondrop.plans.plan import Plan
from visiondrop.plans.shape import VisualShape
from visiondrop.serving.images import refusal

from . import capacity
from .capacity import FITTED, Card, Point
from .queueing import engines, most, simulate

LIMIT = 0.25  # the error of the model from which nothing is planned
ROWS = sorted((ROOT / "results" / "efficiency").glob("gpu-h200*.jsonl"))
# One H100 (80 GB), bfloat16, 7B widths, measured on 26 November 2026; of that session these numbers are kept, not its rows.
H100 = Card("h100", 772e12, 2.99e12, 80e9, "one session of 2026-11-26, whose rows are not kept")
H100_POINTS = (
    Point("prefill", "none", None, 16, 304.0),
    Point("prefill", "visiondrop", 64, 16, 67.7),
    Point("fits", "none", None, 1, 143, limit=80e9),
    Point("fits", "visiondrop", 64, 1, 455, limit=80e9),
)
CARDS = ("h100", "h200")


@dataclass(frozen=True)
class Known:
    """A fitted card, and every measured number beside what the model says of it: (card, point, said)."""

    card: Card
    checks: tuple[tuple[str, Point, float], ...]


def known(name: str, files: list[Path] | None = None) -> Known:
    """A card by name; what was not measured on an H100 is the H200's."""
    rows = record.load(files or ROWS)
    points = capacity.points_of(rows)
    rates = [row["rates"] for row in rows if row["kind"] == "phases"]
    if not points or not rates:
        raise EvaluationError(
            "there are no measured rows of a card with 7B widths: give --rows results/efficiency/gpu-*.jsonl"
        )
    middle = [statistics.median(rate[which] for rate in rates) for which in ("flops", "bytes")]
    h200 = capacity.calibrated(Card("h200", *middle, 141e9, "results/efficiency/gpu-h200*.jsonl"), points)
    checks = tuple(("h200", point, capacity.predicted(h200, point)) for point in points)
    if name == "h200":
        return Known(h200, checks)
    borrowed = replace(H100, **{field: getattr(h200, field) for field in FITTED})
    h100 = capacity.calibrated(borrowed, H100_POINTS)
    own = tuple(("h100", point, capacity.predicted(h100, point)) for point in H100_POINTS)
    return Known(h100, own + checks)


def error(point: Point, said: float) -> float:
    """Of the model, as a share of what was measured."""
    return said / point.value - 1


def check(found: Known, method: str) -> None:
    """Refuse a method that was not measured, or that the model misses by more than `LIMIT` where a plan depends on it.

    Raises:
        EvaluationError: it does.
    """
    measured = sorted({p.method for _, p, _ in found.checks})
    if method not in measured:
        raise EvaluationError(
            f"--method {method}: the time that it takes to choose was not measured on such a card; measured are {', '.join(measured)} "
            "(python -m eval.efficiency sweep --size 7b --device cuda --methods …, then --rows)"
        )
    for card, point, said in found.checks:
        if point.used and point.method in ("none", method) and abs(error(point, said)) > LIMIT:
            raise EvaluationError(
                f"--method {method}: of {point} on one {card} the model says {said:.1f}, measured was {point.value:.1f} "
                f"({100 * error(point, said):+.0f} %, allowed are {100 * LIMIT:.0f} %), so nothing is planned"
            )


def served_plan(method: str, tokens: int | None) -> Plan:
    """Of a picture of 576 patches before a 7B decoder; refused as a server would."""
    plan = visiondrop.plan(method, tokens, shape=VisualShape(layers=capacity.DIMS.layers))
    why = refusal(plan)
    if why is not None:
        raise EvaluationError(f"--method {method} --tokens {tokens}: {why.removesuffix('; served are ')}")
    return plan


def quantity(name: str, text: str, units: dict[str, float]) -> float:
    """ "300ms" -> 300 with {"ms": 1, "s": 1000}; without a unit the first one is meant."""
    found = re.fullmatch(r"\s*([0-9.]+(?:e[0-9]+)?)\s*(\S*)\s*", text)
    try:
        value = float(found[1]) * (units[found[2]] if found[2] else next(iter(units.values())))
    except (TypeError, KeyError, ValueError):
        value = 0.0
    if value <= 0:
        raise EvaluationError(f"{name} {text!r}: give a number above 0 and one of the units {', '.join(units)}")
    return value


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Of the command `plan`."""
    parser.add_argument("--rate", required=True, help="pictures asked about, e.g. 200/s or 5000/min")
    parser.add_argument(
        "--ttft", required=True, help="limit on the time to the first token of 95 %% of them, e.g. 300ms"
    )
    parser.add_argument("--gpu", choices=CARDS, default="h100")
    parser.add_argument("--method", default="visionzip")
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--text", type=int, default=capacity.TEXT, help="text tokens of a prompt")
    parser.add_argument("--new-tokens", type=int, default=16, help="tokens of an answer")
    parser.add_argument("--price", type=float, help="what an hour of one GPU costs; without it costs are in GPU hours")
    parser.add_argument("--batched-tokens", type=int, default=8192, help="vLLM's --max-num-batched-tokens")
    parser.add_argument("--seqs", type=int, default=256, help="vLLM's --max-num-seqs")
    parser.add_argument("--memory-share", type=float, default=0.9, help="vLLM's --gpu-memory-utilization")
    parser.add_argument("--requests", type=int, default=3000, help="simulated for every number of GPUs tried")
    parser.add_argument(
        "--rows", type=Path, nargs="+", help="measured rows of an H200; default: those that are committed"
    )


def run(args: argparse.Namespace) -> None:
    """Print the model's errors and the plan."""
    rate = quantity("--rate", args.rate, {"/s": 1.0, "/min": 1 / 60, "/h": 1 / 3600})
    limit = quantity("--ttft", args.ttft, {"ms": 1.0, "s": 1e3})
    for name in ("tokens", "text", "new_tokens", "batched_tokens", "seqs", "requests"):
        if getattr(args, name) < 1:
            raise EvaluationError(f"--{name.replace('_', '-')} {getattr(args, name)}: give a whole number above 0")
    if args.price is not None and args.price <= 0:
        raise EvaluationError(f"--price {args.price}: give what an hour of one GPU costs, above 0")
    plans = {
        "unpruned": served_plan("none", None),
        f"{args.method} {args.tokens}": served_plan(args.method, args.tokens),
    }
    found = known(args.gpu, args.rows)
    print("\n".join(errors(found)))
    check(found, args.method)
    print(
        f"\nLLaVA-1.5-7B in bfloat16, {rate:g} pictures a second, one a request; {args.text} text tokens, answers of {args.new_tokens}"
    )
    widths = {"GPUs": 6, "GPU hours a million pictures": 30, "cost": 12, "most of one GPU": 18, "TTFT alone": 12}
    print(" " * 16 + "".join(f"{name:>{width}}" for name, width in (widths | {"prompts in its cache": 22}).items()))
    needed = [line_of(args, found.card, name, plan, rate, limit) for name, plan in plans.items()]
    print("\n".join(line for _, line in needed))
    first, second = (number for number, _ in needed)
    print(
        f"{first / second:.2f} times fewer GPUs. Not in it: vLLM's own work on the processor, pictures on their way, failures;"
    )
    print("decoding steps of many answers follow from the roofline, measured with graphs was a batch of 1.")


def line_of(args: argparse.Namespace, card: Card, name: str, plan: Plan, rate: float, limit: float) -> tuple[int, str]:
    """(GPUs, their line of the table) of one side."""
    one = capacity.engine(card, plan, args.batched_tokens, args.seqs, args.memory_share)
    prompt = plan.counts[-1] + args.text
    alone = simulate(one, [0.0], prompt, args.new_tokens)[0]
    number = engines(one, rate, limit, prompt, args.new_tokens, args.requests)
    if number is None:
        raise EvaluationError(f"--ttft {args.ttft}: {name}, one request alone takes {alone:.0f} ms; allow more")
    hours = number * 1e6 / rate / 3600
    cost = f"{hours * args.price:.2f}" if args.price is not None else "(--price)"
    full = most(one, limit, prompt, args.new_tokens, args.requests)
    room = one.cache // (prompt + args.new_tokens)
    return number, f"{name:<16}{number:>6}{hours:>30.2f}{cost:>12}{full:>16.1f}/s{alone:>9.0f} ms{room:>22}"


def errors(found: Known) -> list[str]:
    """Lines of a table of every measured number."""
    card = found.card
    lines = [
        f"{card.name}: {card.flops / 1e12:.0f} TFLOP/s, {card.bytes / 1e12:.2f} TB/s ({card.source})",
        f"fitted: {100 * card.compute:.0f} % of the FLOPs, {100 * card.traffic:.0f} % of the bytes; encoding {card.start:.1f} ms and "
        f"{100 * card.tower:.0f} % of the FLOPs; launched from Python at least {card.launch:.0f} ms, encoding {card.launch_tower:.0f} ms",
    ]
    if card.name == "h100":
        lines.append("an H100's bytes, encoding and launches were not measured: these constants are the H200's")
    lines += ["", f"{'':<6}{'measured':<48}{'ms':>9}{'model':>9}{'error':>8}"]
    for name, point, said in found.checks:
        mark = "" if point.used else "   launches: no plan is built on it"
        off = 100 * error(point, said)
        lines.append(f"{name:<6}{str(point):<48}{point.value:>9.1f}{said:>9.1f}{off:>+7.0f}%{mark}")
    return lines
