"""Scores counted again from the single answers, and their 95 % intervals.

Every headline of our benchmarks is a weighted sum of ratios of sums: accuracy = right / asked, F1 = 2 hits /
(yes said + yes true), MME = sum over categories of 100 right / asked + 100 both right / pairs.  A sample therefore
contributes (numerator, denominator) to one or more terms, and resampling images means re-weighting these sums.
The recount must equal lmms-eval's own score, else the run fails.
"""

from collections import defaultdict
from typing import Any

import numpy as np
from scipy.stats import binomtest, norm

from eval.benchmarks import Benchmark
from eval.errors import EvaluationError
from eval.scoring import records

RESAMPLES = 2000
LEVEL = 2 * norm.cdf(1.959964) - 1  # 95 %, by the rounded quantile that the committed intervals were made with
SEED = 0
MME_COGNITION = ("commonsense_reasoning", "numerical_calculation", "text_translation", "code_reasoning")
MMBENCH_TURN = 1_000_000  # a rotation's index is the question's plus a multiple of this

# term -> (weight, [(cluster, numerator, denominator), ...])
Terms = dict[str, tuple[float, list[tuple[Any, float, float]]]]


def terms(benchmark: Benchmark, samples: list[dict[str, Any]]) -> Terms:
    """The additive counts behind a benchmark's headline.

    Args:
        samples: lmms-eval's samples: doc_id, doc, and what `process_results` returned.
    """
    known = {
        "mean": _mean,
        "pope": _pope,
        "pope_categories": _pope_categories,
        "mme": _mme,
        "mmbench": _mmbench,
        "judged": _judged,
    }
    return known.get(benchmark.counts, _records)(benchmark, samples)


def _cluster(benchmark: Benchmark, sample: dict[str, Any]) -> Any:
    return sample["doc"].get(benchmark.cluster, sample["doc_id"])


def _mean(benchmark: Benchmark, samples: list[dict[str, Any]]) -> Terms:
    return {
        metric: (weight, [(_cluster(benchmark, s), float(s[metric]), 1.0) for s in samples])
        for metric, weight in benchmark.headline.items()
    }


def _records(benchmark: Benchmark, samples: list[dict[str, Any]]) -> Terms:
    """See eval/scoring/records.py; samples without the record are of another kind and count for nothing."""
    ((metric, weight),) = benchmark.headline.items()
    asked = [s for s in samples if s.get(metric) is not None]
    groups: dict[str, list[tuple[Any, float, float]]] = {}
    for s in asked:
        right, one, group = records.READERS[benchmark.counts](s[metric])
        count = _cluster(benchmark, s), right, records.asked_for(benchmark.counts, one, len(asked))
        groups.setdefault(group or metric, []).append(count)
    grouped = metric not in groups
    share = records.share_of_group(benchmark.counts, len(groups)) if grouped else 1.0
    return {group: (weight * share, counts) for group, counts in groups.items()}


def _judged(benchmark: Benchmark, samples: list[dict[str, Any]]) -> Terms:
    read = [s for s in samples if s["judge_accuracy"] is not None]  # a reply that is no verdict counts for nothing
    return _mean(benchmark, read)


def _f1(benchmark: Benchmark, samples: list[dict[str, Any]], metric: str) -> list[tuple[Any, float, float]]:
    counts = []
    for sample in samples:
        said, true = sample[metric]["prediction"] == "yes", sample[metric]["ground_truth"] == "yes"
        # lmms-eval leaves an unreadable answer to a true yes out of the recall; LLaVA's reader never yields one.
        known = sample[metric]["prediction"] in ("yes", "no")
        counts.append((_cluster(benchmark, sample), 2.0 * (said and true), float(said) + float(true and known)))
    return counts


def _pope(benchmark: Benchmark, samples: list[dict[str, Any]]) -> Terms:
    ((metric, weight),) = benchmark.headline.items()
    return {metric: (weight, _f1(benchmark, samples, metric))}


def _pope_categories(benchmark: Benchmark, samples: list[dict[str, Any]]) -> Terms:
    ((metric, weight),) = benchmark.headline.items()
    groups = defaultdict(list)
    for sample in samples:
        groups[sample[metric]["category"]].append(sample)
    return {c: (weight / len(groups), _f1(benchmark, group, metric)) for c, group in groups.items()}


def _mme(benchmark: Benchmark, samples: list[dict[str, Any]]) -> Terms:
    pairs: dict[tuple[str, str], list[float]] = defaultdict(list)
    for sample in samples:
        record = sample.get("mme_perception_score") or sample["mme_cognition_score"]
        pairs[record["category"], record["question_id"]].append(record["score"])
    out: Terms = {}
    for (category, question), scores in pairs.items():
        kind = "mme_cognition_score" if category in MME_COGNITION else "mme_perception_score"
        weight = benchmark.headline[kind]
        value = 100.0 * sum(scores) / len(scores) + 100.0 * (sum(scores) == 2)
        out.setdefault(category, (weight, []))[1].append((question, value, 1.0))
    return out


def _mmbench(benchmark: Benchmark, samples: list[dict[str, Any]]) -> Terms:
    import pandas as pd
    from lmms_eval.tasks.mmbench.mmbench_evals import MMBench_Evaluator

    ((metric, weight),) = benchmark.headline.items()
    reader = MMBench_Evaluator()
    turns: dict[int, list[dict]] = defaultdict(list)
    for sample in samples:
        turns[sample[metric]["index"] % MMBENCH_TURN].append(sample[metric])
    counts = []
    for index, rows in turns.items():
        if not any(r["index"] == index for r in rows):
            continue
        answers = {r["index"]: r["answer"] for r in rows}
        right = reader.eval_sub_data(pd.DataFrame(rows), answers, static_only=True)
        counts.append((index, float(right), 1.0))
    return {metric: (100.0 * weight, counts)}


def _sums(parts: Terms) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Numerators and denominators [clusters, terms] and weights [terms]."""
    names = list(dict.fromkeys(cluster for _, counts in parts.values() for cluster, _, _ in counts))
    position = {name: i for i, name in enumerate(names)}
    top, bottom = np.zeros((len(names), len(parts))), np.zeros((len(names), len(parts)))
    for t, (_, counts) in enumerate(parts.values()):
        for cluster, numerator, denominator in counts:
            top[position[cluster], t] += numerator
            bottom[position[cluster], t] += denominator
    return top, bottom, np.array([weight for weight, _ in parts.values()])


def _score(top: np.ndarray, bottom: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Weighted sum of ratios over the last axis; a term without a denominator counts 0."""
    return (np.divide(top, bottom, out=np.zeros_like(top), where=bottom > 0) * weights).sum(-1)


def recount(parts: Terms) -> float:
    """The headline score from the counts."""
    top, bottom, weights = _sums(parts)
    return float(_score(top.sum(0), bottom.sum(0), weights))


def interval(parts: Terms) -> tuple[list[float] | None, str]:
    """95 % interval of the score and the name of its method.

    Clusters (images, with all their questions) are drawn with replacement, within each group of clusters that feed the
    same terms (MME's categories).  When all agree, resampling would give an interval of width 0; then a plain accuracy
    gets Wilson's interval over the clusters, and anything else none.
    """
    top, bottom, weights = _sums(parts)
    clusters = len(top)
    if clusters < 2:
        return None, "none: a single cluster"
    generator = np.random.default_rng(SEED)
    tops, bottoms = np.zeros((RESAMPLES, len(weights))), np.zeros((RESAMPLES, len(weights)))
    patterns, group_of = np.unique(bottom > 0, axis=0, return_inverse=True)
    for group in range(len(patterns)):
        members = np.flatnonzero(group_of.ravel() == group)
        drawn = generator.multinomial(len(members), np.full(len(members), 1 / len(members)), size=RESAMPLES)
        tops += drawn @ top[members]
        bottoms += drawn @ bottom[members]
    scores = _score(tops, bottoms, weights)
    low, high = (float(x) for x in np.percentile(scores, [2.5, 97.5]))
    if high - low > 1e-9 * max(1.0, abs(high)):
        return [low, high], f"bootstrap of {clusters} clusters, {RESAMPLES} resamples, percentile"
    share = low / weights[0]
    if len(parts) == 1 and min(abs(share), abs(share - 1)) < 1e-9:
        return [
            float(weights[0] * x) for x in wilson(round(share) * clusters, clusters)
        ], f"Wilson over {clusters} clusters"
    return None, "none: all clusters agree"


def wilson(hits: int, n: int) -> tuple[float, float]:
    """Wilson's 95 % interval of a share, `hits` of n."""
    found = binomtest(hits, n).proportion_ci(LEVEL, method="wilson")
    return float(found.low), float(found.high)


def headline(benchmark: Benchmark, metrics: dict[str, float]) -> tuple[float | None, list[str]]:
    """Score and missing metrics from lmms-eval's numbers; (None, []) where a server scores.

    Raises:
        EvaluationError: none of the headline metrics is there.
    """
    if not benchmark.headline:
        return None, []
    missing = [m for m in benchmark.headline if m not in metrics]
    if len(missing) == len(benchmark.headline):
        raise EvaluationError(f"lmms-eval gave no {' or '.join(missing)} for {benchmark.task}")
    return sum(weight * metrics[m] for m, weight in benchmark.headline.items() if m in metrics), missing


def check_recount(benchmark: Benchmark, parts: Terms, score: float) -> None:
    """Fail when our own count differs from lmms-eval's score.

    Raises:
        EvaluationError: they differ by more than rounding.
    """
    ours, digits = recount(parts), records.ROUNDED.get(benchmark.counts or "")
    rounding = 0.0 if digits is None else sum(benchmark.headline.values()) * 0.5 * 10**-digits
    if abs(ours - score) > rounding + 1e-6 * max(1.0, abs(score)):
        raise EvaluationError(
            f"{benchmark.task}: lmms-eval's score {score!r} differs from the count of the single answers, {ours!r}; "
            "the row was not written, the answers are kept"
        )
