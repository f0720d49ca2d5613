"""Load on a running server, and the GPUs that a load needs.

    python -m eval.serving model small /tmp/wide                       # random weights, in the hub's layout
    visiondrop serve /tmp/wide --method none --trust-request-mm-kwargs --no-enable-prefix-caching --port 8000
    python -m eval.serving load --server http://127.0.0.1:8000 --concurrency 1,4,16,64 --requests 4,8,32,64
    python -m eval.serving plan --rate 200/s --ttft 300ms --gpu h100 --method visionzip --tokens 64

`load` alternates unpruned and pruned rounds on the one server and appends a row for each side of a round to --out; rounds
whose rows are there are not asked again, so a call that was broken off goes on.  `bash scripts/serve/benchmark.sh` runs it all.
"""

import argparse
import sys
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from eval.efficiency import record
from eval.errors import EvaluationError
from visiondrop.errors import command_line

from . import load, plan, wide

DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}


def parser() -> argparse.ArgumentParser:
    """The command line."""
    p = argparse.ArgumentParser(prog="python -m eval.serving", description=__doc__.split("\n")[0])
    commands = p.add_subparsers(dest="command", required=True)
    made = commands.add_parser("model", help="write a model with random weights")
    made.add_argument("size", choices=wide.TOWERS)
    made.add_argument("target", type=Path, help="a new folder")
    asked = commands.add_parser("load", help="measure a running server")
    asked.add_argument("--server", required=True, help="its address; it must trust requests' settings")
    asked.add_argument("--model", help="folder or hub id, where the server calls its model otherwise")
    asked.add_argument("--methods", default=f"none,visionzip,{load.FREE}", help="comma-separated")
    asked.add_argument("--tokens", type=int, default=64, help="budget of every method but none")
    asked.add_argument("--concurrency", default="1,4,16,64", help="clients, comma-separated")
    asked.add_argument("--requests", default="4,8,32,64", help="requests of one side of a round, for each concurrency")
    asked.add_argument("--new-tokens", type=int, default=8, help="tokens of every answer")
    asked.add_argument("--rounds", type=int, default=3)
    asked.add_argument("--process", type=int, help="the server's first process, if here: its processor time is noted")
    asked.add_argument("--device", default="cpu", help="what the server computes on, for the row")
    asked.add_argument("--threads", type=int, default=1, help="compute threads of the server, for the row")
    asked.add_argument("--out", type=Path, default=Path("results/serving/local.jsonl"))
    planned = commands.add_parser("plan", help="GPUs that a load needs, unpruned and pruned")
    plan.add_arguments(planned)
    for one in (made, asked):
        one.add_argument("--dtype", choices=DTYPES, default="float32", help="of the weights")
    return p


def measure(args: argparse.Namespace) -> None:
    """All rounds that are not in --out yet, then the table."""
    loads = list(zip(numbers("--concurrency", args.concurrency), numbers("--requests", args.requests), strict=False))
    if len(loads) != len(args.concurrency.split(",")) or len(loads) != len(args.requests.split(",")):
        raise EvaluationError(f"--requests {args.requests}: give one number for each --concurrency {args.concurrency}")
    record.check_writable(args.out)
    target = load.Target(args.server, args.model, args.process)
    cases = [load.Case(m, None if m == "none" else args.tokens) for m in args.methods.split(",")]
    for case in cases:
        target.plan(case)  # refused before anything is asked
    common = {**target.about, "new_tokens": args.new_tokens}
    held = record.load([args.out]) if args.out.exists() else []
    known = {load.identity(row): row for row in held if row["kind"] == "served"}
    shown = []
    sides = args.rounds * len(cases) * sum(requests for _, requests in loads)
    with tqdm(total=sides, desc="requests", unit="q") as bar:
        for case in cases:  # what is compiled or read at first use is not timed
            target.run(case, [10**9], 1, args.new_tokens, lambda: None)
        for clients, requests in loads:
            for turn in range(args.rounds):
                about = {**common, "concurrency": clients, "requests": requests, "round": turn}
                heads = {
                    case: {**load.certificate(args.device, args.dtype, args.threads), **about}
                    | {"method": case.method, "tokens": case.tokens}
                    for case in cases
                }
                rows = [known.get(load.identity(heads[case])) for case in cases]
                if all(rows):
                    bar.update(len(cases) * requests)
                else:
                    rows = one_round(target, cases, heads, bar)
                    record.append(args.out, rows)
                shown += rows
    print("\n".join(load.medians(shown)))


def one_round(target: load.Target, cases: list[load.Case], heads: dict, bar: tqdm) -> list[dict[str, Any]]:
    """Rows of one round, in the order of `cases`; its pictures are its own."""
    about = heads[cases[0]]
    first = (about["concurrency"] * 1000 + about["round"]) * 10_000
    seeds = range(first, first + about["requests"])
    found = {}
    for case in load.order(cases, about["round"]):
        outcome = target.run(case, seeds, about["concurrency"], about["new_tokens"], bar.update)
        found[case] = {**heads[case], **outcome}
    rows = [found[case] for case in cases]
    load.compared(rows)
    return rows


def numbers(name: str, text: str) -> list[int]:
    """ "1,4" -> [1, 4]."""
    try:
        found = [int(part) for part in text.split(",")]
    except ValueError:
        found = [0]
    if min(found) < 1:
        raise EvaluationError(f"{name} {text!r}: give whole numbers above 0 separated by commas, e.g. 1,4")
    return found


@command_line
def main(argv: list[str] | None = None) -> int:
    """Run one command; exit 2 on an error, which is printed in one sentence, 130 after Ctrl-C."""
    args = parser().parse_args(argv)
    if args.command == "model":
        print(f"{wide.write(args.size, args.target, DTYPES[args.dtype])}: visiondrop serve it")
        return 0
    if args.command == "plan":
        plan.run(args)
        return 0
    try:
        measure(args)
    except KeyboardInterrupt:
        print(f"\nstopped; finished rounds are in {args.out}, and the same command goes on", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
