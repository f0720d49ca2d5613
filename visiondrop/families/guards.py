"""What is refused at every door in the same words."""

from typing import Any

from ..errors import VisionDropError

PLACEHOLDER = "<image>"  # stands for a picture in the text of a prompt
PLACEHOLDER_ID = -200  # stands for it in the ids of our llava classes; outside the vocabulary on purpose


def refuse_spelled_placeholder(question: Any) -> None:
    """Refuse a question whose text would be read as a second picture.

    Raises:
        VisionDropError: the text holds the placeholder.
    """
    if isinstance(question, str) and PLACEHOLDER in question:
        raise VisionDropError(
            f"the question {_short(question)} spells the placeholder {PLACEHOLDER}, which stands for a picture and is put "
            "in by itself: leave it out, or write it otherwise, e.g. < image >"
        )


def check_placeholders(text: str, pictures: int) -> None:
    """Check that a text places each of its pictures once.

    Raises:
        VisionDropError: more or fewer placeholders than pictures.
    """
    found = text.count(PLACEHOLDER)
    if found != pictures:
        raise VisionDropError(
            f"the prompt {_short(text)} holds {found} placeholders {PLACEHOLDER} for {pictures} pictures: give one for each "
            "(a video has one per frame), or none, and they are put before the question"
        )


def refuse_placeholders_without_pictures(count: int, token: int) -> None:
    """Refuse ids that hold placeholders when no picture comes with them.

    Raises:
        VisionDropError: there are some.
    """
    if count:
        raise VisionDropError(
            f"{count} image placeholder tokens (id {token}) and no picture: give the pictures' pixels with the prompt, or "
            "a cache that holds them"
        )


def refuse_placeholder_ids(ids: list[int], tokens: tuple[int, ...]) -> None:
    """Refuse a question given as ids that hold a picture's placeholder.

    Raises:
        VisionDropError: one of `tokens` is among them.
    """
    found = [token for token in tokens if token in ids]
    if found:
        raise VisionDropError(
            f"the question's ids hold the image placeholder {found[0]}: give the ids after the picture, which is encoded "
            "already"
        )


def _short(text: str) -> str:
    return repr(text if len(text) <= 80 else text[:77] + "...")
