"""VQAv2 test-dev: the record of the upload file."""

from lmms_eval.tasks._task_utils.vqa_eval_metric import EvalAIAnswerProcessor


def process_results(doc: dict, results: list[str]) -> dict[str, dict]:
    """One upload record, its answer normalised as LLaVA's converter does (the shipped task leaves it raw).

    The server compares strings as they are where all annotators agree, so "Yes" would be wrong there.
    """
    return {"submission": {"question_id": doc["question_id"], "answer": EvalAIAnswerProcessor()(results[0])}}
