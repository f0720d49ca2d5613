"""The leaderboard, made from result rows alone: one HTML file that needs no server and loads nothing.

    python -m figures.leaderboard                        # results/*.jsonl to results/leaderboard.html
    python -m figures.leaderboard --check FILE           # would these rows be taken?  exit code 2 and the lines that would not

Testbed rows and rows of other models never share a table.  A row is refused that is damaged, partial, scored by nobody, made
with uncommitted changes, a duplicate, or under suspicion of having pruned nothing (docs/leaderboard.md).
"""

import argparse
import html
import json
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from eval import benchmarks
from eval.files import write_whole
from eval.results import rows, unpruned
from figures.data import choose, settings
from visiondrop.errors import command_line

TEMPLATE = Path(__file__).parent / "look" / "leaderboard.html"
PAGE = choose.RESULTS / "leaderboard.html"
STAND_IN = "Testbeds: small stand-ins on drawn pictures, no evidence about any other model"
MODELS = "Models"
# key of a column -> (heading, whether it holds numbers)
COLUMNS = {
    "model": ("model", False),
    "benchmark": ("benchmark", False),
    "method": ("method", False),
    "budget": ("budget", True),
    "mean": ("mean tokens", True),
    "rank": ("rank", True),
    "score": ("score", True),
    "interval": ("95 % interval", True),
    "kept": ("of unpruned", True),
    "changed": ("answers changed", True),
    "tflops": ("prefill TFLOPs", True),
    "n": ("n", True),
}
PROOF = (
    *(
        "run",
        "date",
        "commit",
        "model_fingerprint",
        "protocol",
        "task",
        "split",
        "data",
        "questions",
        "options",
        "ledger",
    ),
    *("dtype", "attention", "device", "device_name", "versions", "seed", "interval_method", "server", "checksum"),
)
Row = dict[str, Any]


def refusal(row: Row) -> str | None:
    """Why a whole row is not shown, or None."""
    if row["partial"] or (row["n_full"] is not None and row["n"] != row["n_full"]):
        return f"a partial run: {row['n']} of {row['n_full'] or '?'} questions"
    if row["score"] is None:
        return f"not scored here (by {row['server']})"
    if row["missing"]:
        return f"the data held no question for {', '.join(row['missing'])}"
    if row["dirty"]:
        return "made with uncommitted changes: nobody can run the same code"
    return unpruned.suspicion(row)


def sift(found: Iterable[tuple[str, Row]]) -> tuple[list[Row], list[str]]:
    """Rows that are shown, the newest of each run, and a sentence for each that is not.

    Args:
        found: (place, row).
    """
    shown: dict[str, Row] = {}
    refused, seen = [], set()
    for place, row in sorted(found, key=lambda entry: entry[1]["date"]):  # stable: a copy stands after its row
        why = "a duplicate of a row that is there" if row["checksum"] in seen else refusal(row)
        seen.add(row["checksum"])
        if why:
            refused.append(f"{place}: {why}")
        else:
            shown[row["run"]] = row
    return list(shown.values()), refused


def read(files: Iterable[Path]) -> tuple[list[tuple[str, Row]], list[str]]:
    """Every whole row of some files with its place, and a sentence for every damaged line."""
    found, problems = [], []
    for file in files:
        good, bad = rows.load(file)
        lines = list(enumerate(file.read_text(encoding="utf-8", errors="replace").split("\n"), start=1))
        for row in good:  # in the file's order
            place = next(i for i, (_, text) in enumerate(lines) if f'"checksum": "{row["checksum"]}"' in text)
            found.append((f"{file}, line {lines[place][0]}", row))
            del lines[: place + 1]
        problems += bad
    return found, problems


def stands_in(row: Row) -> bool:
    """Whether a row is about one of the small models of this repository."""
    return row["benchmark"].startswith("testbed")


def contest(row: Row) -> tuple:
    """What rows must have in common to be ranked against one another."""
    return row["model"], row["model_fingerprint"], row["benchmark"], row["protocol"], row["questions"], budget(row)


def budget(row: Row) -> str:
    """What was asked for, as words."""
    return "all" if row["method"] == "none" else str(row["tokens"] or row.get("share") or "settings")


def rank(row: Row, others: list[Row]) -> int | None:
    """1 + how many of its contest lie wholly above it; None for the unpruned row and without an interval."""
    if row["method"] == "none" or row["interval"] is None:
        return None
    rivals = [o for o in others if contest(o) == contest(row) and o["interval"] is not None]
    return 1 + sum(other["interval"][0] > row["interval"][1] for other in rivals)


def base_of(row: Row, others: list[Row]) -> Row | None:
    """The unpruned row of the same checkpoint and questions."""
    same = ("model", "model_fingerprint", "benchmark", "protocol", "questions")
    found = [o for o in others if o["method"] == "none" and all(o[name] == row[name] for name in same)]
    return found[-1] if found else None


def texts(row: Row, others: list[Row]) -> dict[str, tuple[str, Any]]:
    """Column -> (text, what it is sorted by; None: nothing)."""
    place, base = rank(row, others), base_of(row, others)
    options = " ".join(f"{k}={v}" for k, v in row["options"].items())
    kept = None if base is None or not base["score"] else 100 * row["score"] / base["score"]
    changed, tflops = row.get("changed"), row["ledger"].get("tflops")
    between = row["interval"]
    method = f"{row['method']} {options}".strip()
    return {
        "model": (row["model"], row["model"]),
        "benchmark": (_title(row["benchmark"]), row["benchmark"]),
        "method": (method, method),
        "budget": (budget(row), row["ledger"]["mean"]),
        "mean": (f"{row['ledger']['mean']:g}", row["ledger"]["mean"]),
        "rank": ("" if place is None else str(place), place),
        "score": (f"{row['score']:.2f}", row["score"]),
        "interval": ("—" if between is None else f"{between[0]:.1f} – {between[1]:.1f}", between and between[0]),
        "kept": ("—" if kept is None else f"{kept:.1f} %", kept),
        "changed": ("—" if changed is None else f"{100 * changed:.1f} %", changed),
        "tflops": ("—" if tflops is None else f"{tflops:g}", tflops),
        "n": (str(row["n"]), row["n"]),
    }


def _title(benchmark: str) -> str:
    known = benchmarks.load().get(benchmark)
    return next(iter(known.values())).title.partition(" (")[0] if known else benchmark


def line(row: Row, others: list[Row]) -> str:
    """A run as two rows of HTML: what it scored, and behind a click where it comes from."""
    told = texts(row, others)
    groups = [name for name, members in benchmarks.groups().items() if row["benchmark"] in members]
    words = f"{row['model']} {told['method'][0]}".lower()
    cells = "".join(
        f'<td data-head="{COLUMNS[key][0]}" data-value="{"" if value is None else html.escape(str(value))}"'
        f"{' class=number' if COLUMNS[key][1] else ''}>{html.escape(text)}</td>"
        for key, (text, value) in told.items()
    )
    data = {"group": " ".join(groups), "benchmark": row["benchmark"], "budget": told["budget"][0], "words": words}
    attributes = "".join(f' data-{k}="{html.escape(v)}"' for k, v in {**data, "run": row["run"]}.items())
    first = " first" if told["rank"][1] == 1 else ""
    facts = "".join(f"<dt>{name}</dt><dd>{html.escape(_fact(row.get(name)))}</dd>" for name in PROOF)
    return (
        f'<tr class="run{first}" tabindex="0" aria-expanded="false"{attributes}>{cells}</tr>\n'
        f'<tr class="proof" hidden><td colspan="{len(COLUMNS)}"><dl>{facts}</dl></td></tr>'
    )


def _fact(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def order(row: Row) -> tuple:
    """Best first within a contest, contests by falling budget."""
    asked = budget(row)
    size = int(asked) if asked.isdigit() else row["ledger"]["mean"]
    return row["model"], row["benchmark"], row["protocol"], -size, -row["score"], row["run"]


def table(title: str, mine: list[Row]) -> str:
    """One table."""
    heads = "".join(
        f'<th data-key="{key}"{" class=number" if numeric else ""}><button type="button">{name}</button></th>'
        for key, (name, numeric) in COLUMNS.items()
    )
    body = "\n".join(line(row, mine) for row in sorted(mine, key=order))
    head = f"<thead><tr>{heads}</tr></thead>"
    return f'<h2>{title}</h2>\n<div class="wide"><table>{head}<tbody>\n{body}\n</tbody></table></div>'


def page(shown: list[Row], refused: int) -> str:
    """The whole file; the same rows give the same bytes."""
    kinds = {MODELS: [r for r in shown if not stands_in(r)], STAND_IN: [r for r in shown if stands_in(r)]}
    asked = {r["benchmark"] for r in shown}
    groups = [name for name, members in benchmarks.groups().items() if asked & set(members)]
    budgets = sorted({budget(r) for r in shown}, key=lambda b: (not b.isdigit(), -int(b) if b.isdigit() else 0, b))
    none_yet = f"<h2>{MODELS}</h2>\n<p>No rows yet: docs/leaderboard.md says how to add some.</p>"
    tables = [table(title, mine) if mine else none_yet if title == MODELS else "" for title, mine in kinds.items()]
    refusals = f" {refused} rows were refused (python -m figures.leaderboard --check)." if refused else ""
    parts = {
        "groups": _choices(groups),
        "benchmarks": _choices(sorted(asked)),
        "budgets": _choices(budgets),
        "tables": "\n".join(tables),
        "foot": f"{len(shown)} runs, the newest of {max((r['date'] for r in shown), default='—')}.{refusals}",
    }
    text = TEMPLATE.read_text(encoding="utf-8")
    for name, part in parts.items():
        text = text.replace(f"@{name}@", part)
    return text


def _choices(names: Iterable[str]) -> str:
    return "".join(f"<option>{html.escape(name)}</option>" for name in names)


@command_line
def main(argv: list[str] | None = None) -> int:
    """Exit code: 0 done, 2 rows that would not be shown (--check)."""
    parser = argparse.ArgumentParser(prog="python -m figures.leaderboard", description=__doc__.split("\n")[0])
    parser.add_argument("--results", type=Path, nargs="+", metavar="FILE", help="rows; default: results/*.jsonl")
    parser.add_argument(
        "--check", type=Path, metavar="FILE", help="say which rows of a file would be refused, write nothing"
    )
    parser.add_argument("--out", type=Path, default=PAGE, help="the page; default: results/leaderboard.html")
    args = parser.parse_args(argv)
    settings.load()  # a damaged configs/tables.yaml is told first
    found, problems = read([args.check] if args.check else choose.result_files(args.results))
    shown, refused = sift(found)
    if args.check:
        print("\n".join([*(f"error: {p}" for p in problems), *(f"refused: {r}" for r in refused)]), file=sys.stderr)
        print(f"{len(shown)} of {len(found) + len(problems)} rows can be shown")
        return 2 if problems or refused else 0
    args.out.parent.mkdir(parents=True, exist_ok=True)
    write_whole(args.out, page(shown, len(refused) + len(problems)))
    print(f"{args.out}: {len(shown)} runs" + "".join(f"\nrefused: {sentence}" for sentence in [*problems, *refused]))
    return 0


if __name__ == "__main__":
    sys.exit(main())
