"""Scores of benchmarks whose samples hold a record instead of a number, counted again as lmms-eval's aggregations count.

A reader turns a record into (right, asked, group): what it adds to the score's numerator and denominator, and the group of
records whose mean it belongs to (None: all of them).  Benchmarks with groups are means over groups of means over records.
"""

from collections.abc import Callable
from functools import cache
from typing import Any

Count = tuple[float, float, str | None]
Record = dict[str, Any]
OCRBENCH_QUESTIONS = 1000  # lmms-eval divides by this, whatever was asked
MLVU_TASKS = 7  # its mean is over these kinds of questions, those that nobody asked included
# Benchmarks whose aggregation rounds the share it returns, to so many digits.
ROUNDED = {"mmmu": 5, "longvideobench": 5}


def _scored(record: Record) -> Count:
    return float(record["score"]), 1.0, None


def _same(said: str, true: str) -> Callable[[Record], Count]:
    def read(record: Record) -> Count:
        return float(str(record[said]) == str(record[true])), 1.0, None

    return read


def _seed(record: Record) -> Count:
    return float(record["pred"].lower().strip() == record["answer"].lower().strip()), 1.0, None


def _mmstar(record: Record) -> Count:
    return float(record["score"]), 1.0, record["l2_category"]


def _mlvu(record: Record) -> Count:
    return 100.0 * (record["pred_answer"] == record["answer"]), 1.0, record["task_type"]


def _videomme(record: Record) -> Count:
    return 100.0 * (record["pred_answer"] == record["answer"]), 1.0, None


def _mvbench(record: Record) -> Count:
    asked = float(record["pred_answer"] != "")  # an empty answer is left out there
    return 100.0 * record["score"] * asked, asked, None


def _mmmu(record: Record) -> Count:
    from lmms_eval.tasks.mmmu import utils

    choice = record["question_type"] == "multiple-choice"
    judge = utils.eval_multi_choice if choice else utils.eval_open
    return float(any(judge(record["answer"], said) for said in record["parsed_pred"])), 1.0, None


@cache
def _refcoco() -> Any:
    from lmms_eval.tasks.refcoco import utils_rec

    return utils_rec


def _box(record: Record) -> Count:
    return float(_refcoco().compute_accuracy(record["bbox"], record["pred"], 0.5)), 1.0, None


READERS: dict[str, Callable[[Record], Count]] = {
    "scored": _scored,
    "ocrbench": _scored,
    "mmstar": _mmstar,
    "seed": _seed,
    "mmmu": _mmmu,
    "box": _box,
    "videomme": _videomme,
    "mvbench": _mvbench,
    "mlvu": _mlvu,
    "longvideobench": _same("parsed_pred", "answer"),
    "egoschema": _same("pred", "ground_truth"),
}


def share_of_group(counts: str, groups: int) -> float:
    """Weight of one group's mean in the score."""
    return 1 / (MLVU_TASKS if counts == "mlvu" else groups)


def asked_for(counts: str, asked: float, n: int) -> float:
    """What a record adds to the denominator, of `n` records."""
    return asked * OCRBENCH_QUESTIONS / n if counts == "ocrbench" else asked
