"""What the grounded testbed's task files call: the score of one row; picture and prompt are the base testbed's."""

from testbed.grounded.boxes import GOOD, overlap, read_box


def process_results(doc: dict, results: list[str]) -> dict[str, float]:
    """The told box's overlap with the object, and whether it is at least a half; an answer that is no box counts 0."""
    fit = overlap(read_box(results[0]), doc["box"])
    return {"iou": fit, "acc_50": float(fit >= GOOD)}
