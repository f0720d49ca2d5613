"""Paired comparison of two runs on the same questions: tables of means hide whether a difference is one.

    python -m eval.compare results/runs/gqa-…-visiondrop-64-… results/runs/gqa-…-fastv-64-…
    python -m eval.compare A B --metric hop2 --json

Prints both scores, their difference A - B with a paired bootstrap interval (images are drawn with replacement, both
runs' answers to a drawn image together), and McNemar's exact test on the questions that exactly one run got right.
A run is named by its folder, by the folder's name or by its 12-digit id below --runs.
"""

import argparse
import json
import sys
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np
from scipy.stats import binomtest

from eval import benchmarks
from eval.benchmarks import Benchmark
from eval.errors import EvaluationError
from eval.files import ROOT
from eval.results.folder import RunFiles
from eval.scoring import scores
from visiondrop.errors import command_line

RESAMPLES, SEED = 10_000, 0
MUST_AGREE = ("benchmark", "protocol", "task", "split", "questions")


def find(name: str, runs: Path) -> Path:
    """The run's folder.

    Raises:
        EvaluationError: no folder, or more than one, has this name.
    """
    if (Path(name) / "row.json").is_file():
        return Path(name)
    found = sorted(
        p.parent for p in runs.glob("*/row.json") if name in (p.parent.name, p.parent.name.rsplit("-", 1)[-1])
    )
    if len(found) != 1:
        what = f"{len(found)} finished runs" if found else "no finished run"
        raise EvaluationError(f"{what} {name!r} below {runs}: give the folder that holds row.json and samples.jsonl")
    return found[0]


def read(folder: Path) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """(row, samples) of a finished run.

    Raises:
        EvaluationError: a file is missing or damaged.
    """
    try:
        row = json.loads((folder / "row.json").read_text(encoding="utf-8"))
        return row, RunFiles(folder).samples()
    except (OSError, ValueError, KeyError) as error:
        raise EvaluationError(
            f"{folder} holds no whole run ({type(error).__name__}): row.json or samples.jsonl is missing or damaged"
        ) from None


def check_pair(a: dict[str, Any], b: dict[str, Any]) -> None:
    """Refuse two runs that did not answer the same questions.

    Raises:
        EvaluationError: they differ in benchmark, protocol, split or questions.
    """
    for name in MUST_AGREE:
        if a[name] != b[name]:
            raise EvaluationError(f"the runs cannot be paired: {name} is {a[name]!r} and {b[name]!r}")


def right_answers(benchmark: Benchmark, samples: list[dict[str, Any]]) -> dict[Any, bool] | None:
    """Question -> answered rightly, or None where answers are graded (VQA accuracies) or judged elsewhere."""
    if benchmark.counts == "mean":
        ((metric, _),) = benchmark.headline.items()
        values = {s["doc_id"]: s[metric] for s in samples}
        return {k: bool(v) for k, v in values.items()} if set(values.values()) <= {0, 1} else None
    if benchmark.counts in ("pope", "pope_categories"):
        ((metric, _),) = benchmark.headline.items()
        return {s["doc_id"]: s[metric]["prediction"] == s[metric]["ground_truth"] for s in samples}
    if benchmark.counts == "mme":
        return {
            s["doc_id"]: bool((s.get("mme_perception_score") or s["mme_cognition_score"])["score"]) for s in samples
        }
    if benchmark.counts == "mmbench":
        ((_, (_, counts)),) = scores.terms(benchmark, samples).items()
        return {index: bool(value) for index, value, _ in counts}
    return None


def of_metric(
    benchmark: Benchmark, samples: list[dict[str, Any]], metric: str
) -> tuple[scores.Terms, dict[Any, bool] | None]:
    """Counts and right answers for the mean of one metric over the samples that have it.

    Raises:
        EvaluationError: no sample has the metric as a number.
    """
    mine = [s for s in samples if isinstance(s.get(metric), (int, float))]
    if not mine:
        names = sorted({k for s in samples for k in s["metrics"] if isinstance(s["metrics"][k], (int, float))})
        raise EvaluationError(f"no sample has the metric {metric!r}; there are {', '.join(names) or 'none'}")
    counts = [(s["doc"][benchmark.cluster] if benchmark.cluster else s["doc_id"], float(s[metric]), 1.0) for s in mine]
    binary = {s["doc_id"]: bool(s[metric]) for s in mine} if {s[metric] for s in mine} <= {0, 1} else None
    return {metric: (100.0, counts)}, binary


def mcnemar(only_a: int, only_b: int) -> float:
    """Two-sided exact p-value of McNemar's test: a fair coin on the discordant questions."""
    return float(binomtest(only_a, only_a + only_b).pvalue) if only_a + only_b else 1.0


def _arrays(parts: scores.Terms, clusters: dict[Any, int]) -> tuple[np.ndarray, np.ndarray]:
    """Numerators and denominators, [clusters, terms]."""
    top, bottom = np.zeros((len(clusters), len(parts))), np.zeros((len(clusters), len(parts)))
    for t, (_, counts) in enumerate(parts.values()):
        for cluster, numerator, denominator in counts:
            top[clusters[cluster], t] += numerator
            bottom[clusters[cluster], t] += denominator
    return top, bottom


def paired_bootstrap(a: scores.Terms, b: scores.Terms, resamples: int = RESAMPLES) -> dict[str, Any]:
    """Scores, difference and its 95 % percentile interval over images drawn with replacement.

    Images that feed the same terms (MME's categories) are drawn within their group, as in `eval.scoring.scores.interval`.
    """
    names = dict.fromkeys(c for parts in (a, b) for _, counts in parts.values() for c, _, _ in counts)
    clusters = {name: i for i, name in enumerate(names)}
    weights = np.array([weight for weight, _ in a.values()])
    stacks = [_arrays(parts, clusters) for parts in (a, b)]

    def score(top: np.ndarray, bottom: np.ndarray) -> np.ndarray:
        return (np.divide(top, bottom, out=np.zeros_like(top), where=bottom > 0) * weights).sum(-1)

    plain = [float(score(top.sum(0), bottom.sum(0))) for top, bottom in stacks]
    generator, groups = np.random.default_rng(SEED), defaultdict(list)
    asked = stacks[0][1] + stacks[1][1] > 0
    for i in range(len(clusters)):
        groups[asked[i].tobytes()].append(i)
    sums = [[np.zeros((resamples, len(weights))) for _ in range(2)] for _ in stacks]
    for members in groups.values():
        drawn = generator.multinomial(len(members), np.full(len(members), 1 / len(members)), size=resamples).astype(
            float
        )
        for total, stack in zip(sums, stacks):
            for part, array in zip(total, stack):
                part += drawn @ array[members]
    differences = score(*sums[0]) - score(*sums[1])
    low, high = (float(x) for x in np.percentile(differences, [2.5, 97.5]))
    return {
        "a": plain[0],
        "b": plain[1],
        "difference": plain[0] - plain[1],
        "interval": [low, high],
        "images": len(clusters),
    }


def compare(folder_a: Path, folder_b: Path, metric: str | None = None) -> dict[str, Any]:
    """Everything the command prints, as a dictionary."""
    (row_a, samples_a), (row_b, samples_b) = read(folder_a), read(folder_b)
    check_pair(row_a, row_b)
    benchmark = benchmarks.get(row_a["benchmark"], row_a["protocol"])
    if metric is None and benchmark.counts is None:
        raise EvaluationError(
            f"{benchmark.title}, protocol {benchmark.protocol}, is scored by a server: nothing can be paired here"
        )
    if metric is None:
        parts = [scores.terms(benchmark, s) for s in (samples_a, samples_b)]
        right = [right_answers(benchmark, s) for s in (samples_a, samples_b)]
    else:
        (part_a, right_a), (part_b, right_b) = (of_metric(benchmark, s, metric) for s in (samples_a, samples_b))
        parts, right = [part_a, part_b], [right_a, right_b]
    out = {"benchmark": benchmark.name, "protocol": benchmark.protocol, "metric": metric, "n": len(samples_a)}
    out |= {"runs": [row_a["run"], row_b["run"]], "rows": [row_a["checksum"], row_b["checksum"]]}
    out |= {"labels": [label(row_a), label(row_b)], "partial": row_a["partial"] or row_b["partial"]}
    out |= paired_bootstrap(*parts)
    if all(r is not None for r in right):
        both = set(right[0]) & set(right[1])
        only_a, only_b = (sum(x[q] and not y[q] for q in both) for x, y in (right, right[::-1]))
        out |= {"n": len(both), "only_a": only_a, "only_b": only_b, "p": mcnemar(only_a, only_b)}
    return out


def label(row: dict[str, Any]) -> str:
    """What a row ran: method, budget, options."""
    options = " ".join(f"{k}={v}" for k, v in row["options"].items())
    return " ".join(str(x) for x in (row["method"], row["tokens"] or row.get("share") or "", options) if x != "")


def report(result: dict[str, Any]) -> str:
    """The comparison for a person."""
    what = f"{result['benchmark']} ({result['protocol']})" + (f", {result['metric']}" if result["metric"] else "")
    lines = [
        f"{what}: n = {result['n']} questions on {result['images']} images" + (", partial" if result["partial"] else "")
    ]
    lines += [f"  {name} {result['labels'][i]:<44}{result[name.lower()]:9.2f}" for i, name in enumerate("AB")]
    low, high = result["interval"]
    verdict = "the interval contains 0" if low <= 0 <= high else "the interval excludes 0"
    lines.append(
        f"  A - B {result['difference']:+.2f}, paired bootstrap 95 % interval {low:+.2f} … {high:+.2f} ({verdict})"
    )
    if "p" in result:
        lines.append(
            f"  only A right {result['only_a']}, only B right {result['only_b']}: McNemar exact p = {result['p']:.3g}"
        )
    else:
        lines.append("  no McNemar test: answers are graded, not right or wrong")
    return "\n".join(lines)


@command_line
def main(argv: list[str] | None = None) -> int:
    """Exit code: 0 done, 2 refused."""
    parser = argparse.ArgumentParser(prog="python -m eval.compare", description=__doc__.split("\n")[0])
    parser.add_argument("a", metavar="A", help="run folder, its name or its id")
    parser.add_argument("b", metavar="B")
    parser.add_argument("--metric", help="a single metric instead of the headline, e.g. a kind of testbed question")
    parser.add_argument("--runs", type=Path, default=ROOT / "results" / "runs")
    parser.add_argument("--json", action="store_true", help="one JSON line instead of text")
    args = parser.parse_args(argv)
    result = compare(find(args.a, args.runs), find(args.b, args.runs), args.metric)
    print(json.dumps(result) if args.json else report(result))
    return 0


if __name__ == "__main__":
    sys.exit(main())
