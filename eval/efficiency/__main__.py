"""Measure how fast pruning is.  Random weights suffice, so no checkpoint is needed.

    python -m eval.efficiency sweep --methods none,stock,visiondrop --tokens 64,128 --batch 1,4
    python -m eval.efficiency sweep --size 7b --device cuda --dtype bfloat16 --batch 1,32 --attention flash_attention_2
    python -m eval.efficiency goals                      # the ratios speed is judged by (goals.py)
    python -m eval.efficiency memory                     # prefill memory from 576 to 32k visual tokens
    python -m eval.efficiency graphs --device cuda       # with and without `compile=True`; also: sweep ... --compile
    python -m eval.efficiency score --device cuda        # the score alone, chunked against fused
    python -m eval.efficiency overlap                    # tokens kept in bfloat16 against float32, on the shipped testbed
    python -m eval.efficiency plot results/efficiency/*.jsonl

Every command but `plot` prints a table and appends JSON lines to --out.  On the CPU one thread is used and its own CPU
time is the clock; on CUDA, events.  Candidates are interleaved; numbers are medians with (min - max).
"""

import argparse
import json
import sys
from pathlib import Path
from typing import Any

import torch

from eval.errors import EvaluationError
from visiondrop.errors import command_line

from . import families, goals, graphs, memory, models, overlap, plots, record, roofline, score
from .phases import STOCK, Bench, Case

TOWERS = {"clip-l": models.CLIP_L, "tiny": models.CLIP_TINY}
DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}
CROPS = (1, 2, 5, 10, 20, 40, 57)  # x 576 = 576 ... 32,832 visual tokens


def parser() -> argparse.ArgumentParser:
    """The command line."""
    p = argparse.ArgumentParser(prog="python -m eval.efficiency", description=__doc__.split("\n")[0])
    commands = p.add_subparsers(dest="command", required=True)
    sweep = commands.add_parser("sweep", help="encode, select, prefill and decode apart")
    sweep.add_argument("--methods", default="none,stock,visiondrop", help="'stock' is transformers' class")
    sweep.add_argument("--tokens", default="64", help="budgets, comma-separated")
    sweep.add_argument("--batch", default="1", help="batch sizes, comma-separated")
    sweep.add_argument("--units", type=int, default=1, help="crops of 576 patches per image; 5 is LLaVA-NeXT-like")
    sweep.add_argument("--size", choices=models.SIZES, default="small")
    sweep.add_argument("--tower", choices=TOWERS, default="clip-l")
    sweep.add_argument("--steps", type=int, default=8, help="decoding steps timed")
    text = models.BEFORE + models.AFTER
    sweep.add_argument("--text", type=int, default=text, help="text tokens, 35 of them before the image")
    sweep.add_argument(
        "--compile", action="store_true", help="then the rows of `graphs`: with and without static shapes"
    )
    sweep.add_argument("--memory-limit", type=float, default=24, help="GB for the largest batch")
    goal = commands.add_parser("goals", help="the judged ratios")
    goal.add_argument("--only", nargs="*", choices=goals.GOALS, default=list(goals.GOALS))
    growth = commands.add_parser("memory", help="prefill memory against visual tokens")
    growth.add_argument("--methods", default="none,visiondrop")
    alone = commands.add_parser("score", help="the score alone, chunked against fused")
    alone.add_argument("--heads", type=int, default=32)
    alone.add_argument("--head-size", type=int, default=128)
    static = commands.add_parser("graphs", help="with and without static shapes")
    static.add_argument("--methods", default="none,visiondrop")
    static.add_argument("--tokens", default="64", help="budgets, comma-separated")
    static.add_argument("--batch", default="1", help="batch sizes, comma-separated")
    static.add_argument("--size", choices=models.SIZES, default="small")
    static.add_argument("--tower", choices=TOWERS, default="clip-l")
    static.add_argument("--steps", type=int, default=8, help="decoding steps timed")
    family = commands.add_parser(
        "family", help="Qwen2.5-VL-7B's widths through hooks, prefill and decode against stock"
    )
    family.add_argument("--methods", default="visiondrop,visionzip,divprune,fastv")
    family.add_argument("--tokens", default="22%", help="budgets, comma-separated")
    family.add_argument("--batch", default="1", help="batch sizes, comma-separated")
    family.add_argument("--side", type=int, default=32, help="tokens per side of the picture")
    family.add_argument("--size", choices=families.WIDTHS, default="thin")
    family.add_argument("--steps", type=int, default=8, help="decoding steps timed")
    kept = commands.add_parser("overlap", help="tokens kept in bfloat16 against float32, on a checkpoint")
    kept.add_argument("--model", default="checkpoints/testbed", help="a checkpoint; default the shipped testbed")
    kept.add_argument("--data", default="testbed_validation", help="a question set by name, or as `advise` takes it")
    kept.add_argument("--methods", default=",".join(overlap.METHODS))
    kept.add_argument("--tokens", type=int, default=64)
    kept.add_argument("--limit", type=int, default=200, help="samples asked")
    for command in (sweep, goal, growth, alone, static, family, kept):
        command.add_argument("--rounds", type=int, default=7)
        command.add_argument("--device", default="cpu")
        command.add_argument("--dtype", choices=DTYPES, default="float32")
        command.add_argument("--attention", choices=("sdpa", "eager", "flash_attention_2"), default="sdpa")
        command.add_argument("--threads", type=int, default=1)
        command.add_argument("--out", type=Path, default=Path("results/efficiency/local.jsonl"))
    plot = commands.add_parser("plot", help="figures from rows")
    plot.add_argument("rows", type=Path, nargs="+")
    plot.add_argument("--folder", type=Path, default=Path("results/efficiency"))
    return p


def cases_of(args: argparse.Namespace) -> list[Case]:
    """Every method at every budget; bases once."""
    cases = []
    for method in args.methods.split(","):
        budgets = [None] if method in ("none", STOCK) else numbers("--tokens", args.tokens)
        cases += [Case(method, tokens) for tokens in budgets]
    return cases


def numbers(name: str, text: str) -> list[int]:
    """ "1,4" -> [1, 4]."""
    try:
        return [int(part) for part in text.split(",")]
    except ValueError:
        raise EvaluationError(f"{name} {text!r}: give whole numbers separated by commas, e.g. 1,4") from None


def settings_of(args: argparse.Namespace) -> dict[str, Any]:
    """How the models of a command are built."""
    dtype, tower = DTYPES[args.dtype], TOWERS[args.tower]
    return {"tower": tower, "vocab": 32000, "dtype": dtype, "device": args.device, "attention": args.attention}


def sweep(args: argparse.Namespace) -> None:
    """The table of phases."""
    cases, settings = cases_of(args), settings_of(args)
    model = models.build(args.size, **settings)
    stock = models.build_stock(args.size, **settings) if any(c.method == STOCK for c in cases) else None
    rates = roofline.measure(model.device, DTYPES[args.dtype])
    print(f"measured rates: {rates.flops / 1e9:.0f} GFLOP/s, {rates.bytes / 1e9:.1f} GB/s")
    columns = {"case": -18, "batch": 6, "encode ms": 24, "select": 20, "prefill": 24, "roofline": 10}
    columns |= {"realised": 10, "decode": 20, "MiB": 8, "img/s": 8, "tok/s": 8, "max batch": 10}
    print("".join(f"{name:<{-width}}" if width < 0 else f"{name:>{width}}" for name, width in columns.items()))
    for batch in numbers("--batch", args.batch):
        try:
            bench = Bench(model, stock, args.units, batch, args.steps, args.text)
            bench.measure(
                cases, args.rounds, lambda phase: print(f"  batch {batch}: {phase} measured", file=sys.stderr)
            )
        except torch.cuda.OutOfMemoryError:
            print(f"  batch {batch}: the card's memory is full; larger batches are left out", file=sys.stderr)
            break
        rows = [{**bench.row(case, rates, args.memory_limit * 1e9), "tower": args.tower} for case in cases]
        record.append(args.out, [{**record.certificate(args.device, args.dtype), **row} for row in rows])
        for case, row in zip(cases, rows):
            ms = row["ms"]
            print(
                f"{str(case):<18}{batch:>6}{spread(ms['encode']):>24}{spread(ms['select']):>20}{spread(ms['prefill']):>24}"
                f"{row['roofline_ms']['prefill']:>10.1f}{realised(row):>10}{spread(ms['decode']):>20}"
                f"{row['memory_bytes'] / 2**20:>8.0f}"
                f"{row['images_per_s']:>8.2f}{row['decode_tokens_per_s']:>8.0f}{row['max_batch']:>10}"
            )
    if args.compile:
        compare_static(args, model, [case for case in cases if case.method != STOCK])


def spread(values: dict[str, float], digits: int = 1) -> str:
    """median (min - max)."""
    return f"{values['median']:.{digits}f} ({values['min']:.{digits}f}-{values['max']:.{digits}f})"


def realised(row: dict[str, Any]) -> str:
    """Which share of the FLOP ratio the decoder's prefill reaches."""
    return f"{100 * row['realised']['prefill']['share']:.0f} %" if row["realised"] else "—"


def judged(args: argparse.Namespace) -> None:
    """The goals, one row each."""
    for name in args.only:
        outcome = goals.GOALS[name](args.rounds)
        row = {
            **record.certificate("cpu", "float32"),
            "kind": "goal",
            "name": name,
            "clock": "thread cpu time",
        } | outcome
        record.append(args.out, [row])
        print(f"{name}: {goals.GOALS[name].__doc__}")
        for key, value in outcome.items():
            if isinstance(value, dict) and "median" in value:
                print(f"  {key:<18} {spread(value, 3)}  over {value['n']} rounds")
        if "flop_ratio" in outcome:
            print("  FLOP ratio         {whole:.2f}, causal attention {causal:.2f}".format(**outcome["flop_ratio"]))
        print(f"  goal               {json.dumps(outcome['goal'])}")


def growth(args: argparse.Namespace) -> None:
    """Memory of the prefill, encoder stage off, so that the first stage in the decoder sees every visual token."""
    model = models.build("thin", device=args.device, dtype=DTYPES[args.dtype], attention=args.attention)
    print(f"{'method':<14}{'visual tokens':>14}{'MiB':>10}{'bytes / token':>15}")
    for method in args.methods.split(","):
        for units in CROPS:
            shape = models.crops(units, model.config.num_hidden_layers)
            held = prefill_bytes(model, method, shape)
            row: dict[str, Any] = {
                "kind": "memory",
                "method": method,
                "visual_tokens": shape.tokens,
                "hidden": model.config.hidden_size,
                "layers": shape.layers,
                "memory_bytes": held,
                "counted": "allocator's peak" if model.device.type == "cuda" else "tensors returned by operators",
            }
            record.append(args.out, [{**record.certificate(args.device, args.dtype), **row}])
            print(f"{method:<14}{shape.tokens:>14}{held / 2**20:>10.1f}{held / shape.tokens:>15.0f}", flush=True)


def prefill_bytes(model, method: str, shape) -> int:
    """Peak bytes of a prefill of one image of `shape`; budget: half of the tokens on average."""
    import visiondrop

    hidden, layout = models.stack_input(model, 1, shape)
    options = {"encoder": "off"} if method == "visiondrop" else {}
    visiondrop.apply(model, method, None if method == "none" else shape.tokens // 2, shape=shape, options=options)
    return memory.peak(lambda: model.model(inputs_embeds=hidden, layout=layout(), use_cache=True), model)


def scoring(args: argparse.Namespace) -> None:
    """Chunked against fused, one row per number of visual tokens."""
    for count in score.COUNTS:
        outcome = score.measure(count, args.heads, args.head_size, args.rounds, args.device, DTYPES[args.dtype])
        record.append(args.out, [{**record.certificate(args.device, args.dtype), "kind": "score", **outcome}])
        print(f"{count:>6} visual tokens", end="")
        for name, ms in outcome["ms"].items():
            print(f"   {name} {spread(ms, 2)} ms, {outcome['memory_bytes'][name] / 2**20:.1f} MiB", end="")
        print("" if "fused" in outcome["ms"] else "   fused: needs a CUDA card and triton", flush=True)


def graphed(args: argparse.Namespace) -> None:
    """First token and decoding step, eager against static."""
    compare_static(args, models.build(args.size, **settings_of(args)), cases_of(args))


def compare_static(args: argparse.Namespace, model, cases: list[Case]) -> None:
    """The rows of `graphs` for a model at hand."""
    for batch in numbers("--batch", args.batch):
        rows = graphs.measure(model, cases, batch, args.rounds, args.steps)
        record.append(
            args.out, [{**record.certificate(args.device, args.dtype), "size": args.size, **row} for row in rows]
        )
        for row in rows:
            name = f"{row['method']} {row['tokens'] or ''}, batch {batch}{'' if row['captured'] else ' (not captured)'}"
            for phase in ("first_token", "decode"):
                ways = "   ".join(f"{way} {spread(row[phase][way], 2)} ms" for way in ("eager", "static"))
                print(f"{name:<40}{phase:<13}{ways}", flush=True)


def hub_family(args: argparse.Namespace) -> None:
    """One row per method and batch."""
    model = families.build(args.size, DTYPES[args.dtype], args.device)
    cases = [families.Case(None)]
    cases += [families.Case(method, tokens) for method in args.methods.split(",") for tokens in args.tokens.split(",")]
    for batch in numbers("--batch", args.batch):
        rows = families.measure(model, cases, batch, args.side, args.rounds, args.steps)
        common = {**record.certificate(args.device, args.dtype), "size": args.size}
        record.append(args.out, [{**common, **row} for row in rows])
        for case, row in zip(cases, rows):
            parts = [f"{phase} {spread(row['ms'][phase], 2)} ms" for phase in ("prefill", "decode")]
            shown = f"prefill ratio {row['ratio']['prefill']['median']:.2f}, {100 * row['realised']:.0f} % of FLOPs' {row['flop_ratio']:.2f}"
            print(f"{str(case):<18} batch {batch:<4} {'   '.join(parts)}   {shown}", flush=True)


def kept_alike(args: argparse.Namespace) -> None:
    """One row per method."""
    for row in overlap.measure(args.model, args.data, args.methods.split(","), args.tokens, args.limit):
        common = {**record.certificate("cpu", "bfloat16"), "kind": "overlap", "model": args.model, "data": args.data}
        record.append(args.out, [{**common, **row}])
        stages = ", ".join(f"{layer} {100 * share:.1f} %" for layer, share in row["overlap"].items())
        print(
            f"{row['method']:<14}{row['n']} samples, same answers {100 * row['same_answers']:.1f} %, kept: {stages}",
            flush=True,
        )


@command_line
def main(argv: list[str] | None = None) -> int:
    """Run one command; exit 2 on an error, which is printed in one sentence."""
    args = parser().parse_args(argv)
    if args.command == "plot":
        for path in plots.draw(record.load(args.rows), args.folder):
            print(path)
        return 0
    if getattr(args, "compile", False) and args.units > 1:
        raise EvaluationError("--compile measures images of one crop: leave out --units, or --compile")
    if args.device != "cpu" and not torch.cuda.is_available():
        raise EvaluationError(f"--device {args.device}: torch finds no card here; use --device cpu")
    torch.set_num_threads(args.threads)
    record.check_writable(args.out)
    commands = {
        "sweep": sweep,
        "goals": judged,
        "memory": growth,
        "score": scoring,
        "graphs": graphed,
        "overlap": kept_alike,
    }
    {**commands, "family": hub_family}[args.command](args)
    return 0


if __name__ == "__main__":
    sys.exit(main())
