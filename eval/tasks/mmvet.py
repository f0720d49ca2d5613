"""MM-Vet's picture and prompt, as lmms-eval's task has them; its marks come from eval/scoring/judge.py."""

from PIL import Image


def doc_to_visual(doc: dict) -> list[Image.Image]:
    """The picture, none where a question has none."""
    return [] if doc["image"] is None else [doc["image"].convert("RGB")]


def doc_to_text(doc: dict, lmms_eval_specific_kwargs: dict | None = None) -> str:
    """The question between the settings' words."""
    told = lmms_eval_specific_kwargs or {}
    return f"{told.get('pre_prompt', '')}{doc['question']}{told.get('post_prompt', '')}"
