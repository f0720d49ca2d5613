"""A group of benchmarks for one model: the cost first, then the runs that are missing, then one table.

    python -m figures.groups --benchmark documents --tokens 22% 11% --method visionzip visiondrop --model Qwen/Qwen2.5-VL-7B-Instruct
    python -m figures.groups --benchmark grounding video --tokens 64 --dry-run

The unpruned model runs too: every cell says what is left of its score.  What was interrupted goes on where it stopped.  Arguments
behind -- go to eval.run.  Writes results/tables/GROUP-MODEL[-PROTOCOL].md; a cell without a run holds a dash and the reason.
"""

import argparse
import re
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from eval import benchmarks, run
from eval.files import write_whole
from eval.results import rows, unpruned
from eval.settings import Settings
from figures.data import choose
from figures.look.render import DASH
from visiondrop.errors import command_line

Row = dict[str, Any]


@dataclass(frozen=True)
class Arm:
    """A method at a budget; tokens: as on the command line, None for the unpruned model."""

    method: str
    tokens: str | None

    def fits(self, row: Row) -> bool:
        """Whether a row is this arm's, without options."""
        if row["method"] != self.method or row["options"]:
            return False
        return self.tokens is None or str(row["tokens"] or row.get("share")) == self.tokens

    def arguments(self) -> list[str]:
        """For eval.run."""
        return ["--method", self.method, *([] if self.tokens is None else ["--tokens", self.tokens])]


def arms(methods: list[str], budgets: list[str]) -> list[Arm]:
    """The unpruned model, then every method at every budget."""
    return [Arm("none", None), *(Arm(method, tokens) for tokens in budgets for method in methods)]


def newest(found: list[Row], benchmark: str, model: str, protocol: str, arm: Arm) -> Row | None:
    """The newest whole row of a cell."""
    mine = [
        row
        for row in found
        if (row["benchmark"], row["model"], row["protocol"]) == (benchmark, model, protocol)
        and arm.fits(row)
        and not row["partial"]
    ]
    return max(mine, key=lambda row: row["date"], default=None)


def cost(missing: list[tuple[str, Arm]], protocol: str) -> str:
    """What is going to be asked, in words: runs, questions, and the most words that may be answered."""
    if not missing:
        return "every row is there: nothing to run"
    sizes = [benchmarks.get(name, protocol).rows for name, _ in missing]
    unknown = sum(size is None for size in sizes)
    lines = [f"{len(missing)} runs to do, {sum(s or 0 for s in sizes):,} questions"]
    if unknown:
        lines[0] += f" and those of {unknown} runs whose size is not published"
    for arm in dict.fromkeys(arm for _, arm in missing):
        mine = [name for name, a in missing if a == arm]
        lines.append(f"  {arm.method} {arm.tokens or 'unpruned'}: {', '.join(mine)}")
    return "\n".join(lines)


def cell(row: Row | None, base: Row | None, why: str) -> tuple[str, str]:
    """(text, footnote) of one cell."""
    if row is None:
        return DASH, why
    if row["score"] is None:
        return DASH, f"scored by {row['server']}"
    text = f"{row['score']:.2f}"
    if row["interval"]:
        text += f" [{row['interval'][0]:.1f}, {row['interval'][1]:.1f}]"
    if base is not None and base is not row:
        if base["questions"] != row["questions"] or base["model_fingerprint"] != row["model_fingerprint"]:
            return DASH, "asked other questions, or another checkpoint, than the unpruned row"
        if base["score"]:
            text += f", {100 * row['score'] / base['score']:.1f} %"
    return text, unpruned.suspicion(row) or ""


def table(group: str, model: str, protocol: str, chosen: list[Arm], found: list[Row], why: dict[str, str]) -> str:
    """The group's table in Markdown; the same rows give the same bytes.

    Args:
        why: benchmark -> the reason why it has no rows, where it is known.
    """
    names = benchmarks.groups()[group]
    notes: list[str] = []
    lines = [f"# {group}: {model} ({protocol})", "", "Score [95 % interval], share of the unpruned score.", ""]
    lines += ["| method | budget | " + " | ".join(names) + " |", "| --- " * (len(names) + 2) + "|"]
    for arm in chosen:
        texts = []
        for name in names:
            row = newest(found, name, model, protocol, arm)
            base = newest(found, name, model, protocol, Arm("none", None))
            text, note = cell(row, base, why.get(name, "not run"))
            if note and note not in notes:
                notes.append(note)
            texts.append(text + (f"<sup>{notes.index(note) + 1}</sup>" if note else ""))
        lines.append(f"| {arm.method} | {arm.tokens or 'all'} | " + " | ".join(texts) + " |")
    lines += ["", *(f"{i}. {note}" for i, note in enumerate(notes, start=1))]
    return "\n".join(lines).rstrip() + "\n"


def _model_of(args: argparse.Namespace) -> str:
    """Its name as rows have it."""
    model = args.model or benchmarks.get(benchmarks.groups()[args.benchmark[0]][0], args.protocol).default_model
    return Path(model).resolve().name if Path(model).is_dir() else model


def _one(group: str, args: argparse.Namespace, more: list[str]) -> int:
    """Run what a group lacks and write its table; the worst exit code."""
    model, chosen, codes, why = _model_of(args), arms(args.method, args.tokens), [0], {}
    found = rows.load(args.out)[0] if args.out.exists() else []
    places = [(n, arm) for n in benchmarks.groups()[group] for arm in chosen]
    missing = [(n, arm) for n, arm in places if newest(found, n, model, args.protocol, arm) is None]
    print(f"== {group}: {cost(missing, args.protocol)}", flush=True)
    if args.dry_run:
        return 0
    shared = [
        "--protocol",
        args.protocol,
        "--out",
        str(args.out),
        *(["--model", args.model] if args.model else []),
        *more,
    ]
    for name, arm in missing:
        code, reach = run.attempt([name, *arm.arguments(), *shared])
        codes.append(code)
        if code == 130 or reach == "batch":
            return code
        if code:
            why[name] = "the run failed: the reason is on the terminal"
    found = rows.load(args.out)[0] if args.out.exists() else []
    stem = "-".join([group, re.sub(r"[^\w.]+", "_", model), *(["offline"] if args.protocol == "offline" else [])])
    args.folder.mkdir(parents=True, exist_ok=True)
    write_whole(args.folder / f"{stem}.md", table(group, model, args.protocol, chosen, found, why))
    print(args.folder / f"{stem}.md")
    return max(codes)


@command_line
def main(argv: list[str] | None = None) -> int:
    """Exit code: 0 done, 2 a run failed (it is named), 130 interrupted."""
    argv = sys.argv[1:] if argv is None else argv
    split = argv.index("--") if "--" in argv else len(argv)
    parser = argparse.ArgumentParser(prog="python -m figures.groups", description=__doc__.split("\n")[0])
    parser.add_argument("--benchmark", nargs="+", required=True, choices=benchmarks.groups(), help="groups")
    parser.add_argument("--tokens", nargs="+", default=["64"], help="budgets, as eval.run takes them (default: 64)")
    parser.add_argument("--method", nargs="+", default=["visiondrop"], help="methods (default: visiondrop)")
    parser.add_argument("--model", help="as given to eval.run (default: the benchmarks' own)")
    parser.add_argument("--protocol", choices=benchmarks.PROTOCOLS, default="paper")
    parser.add_argument("--out", type=Path, default=Path(Settings.out), help="results file that is read and added to")
    parser.add_argument("--folder", type=Path, default=choose.TABLES, help="where the tables go")
    parser.add_argument("--dry-run", action="store_true", help="only say what is missing")
    args = parser.parse_args(argv[:split])
    codes = []
    for group in args.benchmark:
        codes.append(_one(group, args, argv[split + 1 :]))
        if codes[-1] == 130:
            break
    return max(codes)


if __name__ == "__main__":
    sys.exit(main())
