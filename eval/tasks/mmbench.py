"""Functions named by our MMBench task files: LLaVA's question layout and a score that needs no judge."""

from typing import Any

from lmms_eval.tasks.mmbench.cn_utils import mmbench_evaluator

OPTIONS = "ABCD"


def present(value: Any) -> bool:
    """Whether a spreadsheet cell holds something (the hub sets write a missing one as None or the word "nan")."""
    return value is not None and str(value).strip().lower() not in ("", "nan", "none")


def llava_question(doc: dict, lmms_eval_specific_kwargs: dict) -> str:
    """The question as LLaVA-1.5 asks it: hint, question and each option on a line of its own, then the tail."""
    lines = [doc["hint"]] if present(doc["hint"]) else []
    lines.append(doc["question"])
    lines += [f"{letter}. {doc[letter]}" for letter in OPTIONS if present(doc.get(letter))]
    return lmms_eval_specific_kwargs["pre_prompt"] + "\n".join(lines) + lmms_eval_specific_kwargs["post_prompt"]


def static_score(results: list[dict], args: Any) -> float:
    """Circular accuracy in percent; an answer no rule can read is wrong.  `args` is lmms-eval's and unused."""
    return 100.0 * mmbench_evaluator.eval_result(results, eval_method="static")[0]
