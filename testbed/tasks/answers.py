"""What the testbed's task files call: picture, prompt and score of one row.

An answer counts when its first word, lower-cased and without punctuation, is the expected word. Besides `exact_match`
over all rows every row reports under the name of its kind, so lmms-eval prints one accuracy per kind.
"""

import re
from functools import lru_cache

from PIL import Image

from testbed.data.scenes import draw_scene


@lru_cache(maxsize=1024)  # up to four questions share a picture, and runs of one process share all; 0.35 MB each
def picture(split: str, scene: int) -> Image.Image:
    """The picture of a scene."""
    return Image.fromarray(draw_scene(split, scene).image)


def doc_to_visual(doc: dict) -> list:
    """The picture, drawn when it is first asked for, as a list of one PIL image."""
    return [picture(doc["split"], doc["scene"])]


def doc_to_text(doc: dict, lmms_eval_specific_kwargs: dict | None = None) -> str:
    """The bare question: the model was trained without a request for short answers."""
    return doc["question"]


def first_word(text: str) -> str:
    """First word of an answer, lower case, "" when there is none."""
    found = re.search(r"\w+", text.lower())
    return found.group() if found else ""


def process_results(doc: dict, results: list[str]) -> dict[str, float]:
    """1 or 0 for the whole set and for the row's kind."""
    right = float(first_word(results[0]) == doc["answer"])
    return {"exact_match": right, doc["kind"]: right}
