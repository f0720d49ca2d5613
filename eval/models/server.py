"""Asking a server over HTTP: one request, one JSON answer, one sentence for what goes wrong."""

import json
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from eval.errors import EvaluationError
from visiondrop.errors import first_line

PATIENCE = 600  # seconds for one answer


def fetch(url: str, body: dict[str, Any] | None = None) -> dict[str, Any]:
    """The JSON that a server answers.

    Raises:
        EvaluationError: it is not there, or refuses; its own sentence where it says one.
    """
    with opened(url, body) as answer:
        return json.load(answer)


@contextmanager
def opened(url: str, body: dict[str, Any] | None = None) -> Iterator[Any]:
    """The open answer of a server, to be read inside the block; errors as in `fetch`."""
    data = None if body is None else json.dumps(body).encode()
    try:
        asked = urllib.request.Request(url, data, {"Content-Type": "application/json"})
        with urllib.request.urlopen(asked, timeout=PATIENCE) as answer:
            yield answer
    except urllib.error.HTTPError as error:
        try:
            said = json.load(error)["error"]["message"]
        except (ValueError, KeyError, TypeError):
            said = first_line(error)
        raise EvaluationError(f"the server at {url} refuses ({error.code}): {said}", "batch") from None
    except (OSError, ValueError) as error:
        if isinstance(error, EvaluationError):
            raise
        raise EvaluationError(
            f"--server: no answer from {url} ({first_line(error)}): start one with visiondrop serve", "batch"
        ) from None


def version_of_server(url: str) -> str:
    """vLLM's version, as rows and identities name it."""
    return f"vllm {fetch(f'{url}/version').get('version', 'unknown')}"
