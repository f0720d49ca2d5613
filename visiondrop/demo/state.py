"""What one look at the page consists of: a picture, a question, a budget, methods; as a link, as commands, as Python."""

import shlex
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlencode

from ..errors import VisionDropError
from ..methods.registry import check_options
from ..plans.budget import Budget, share_of

MOST_METHODS = 6  # side by side
MOST_LETTERS = 1000  # of a question
DEFAULT_METHODS = ("visiondrop", "fastv")
DEFAULT_TOKENS = 64
OWN = "own"  # in a link: a picture that only its owner has


@dataclass(frozen=True)
class State:
    """One look at the page.

    Attributes:
        picture: name of an example, or `OWN`; mark: for `OWN`, the start of the picture's SHA-256.
        tokens: the budget, a count or a share ("22%"); methods: as written on the page, e.g. "visiondrop merge=off".
        stage: where the stage slider stands, counted from the input, or None: at the last stage.
    """

    picture: str
    question: str
    tokens: Budget = DEFAULT_TOKENS
    methods: tuple[str, ...] = DEFAULT_METHODS
    stage: int | None = None
    mark: str = ""

    def query(self) -> str:
        """The part of a link after its question mark."""
        pairs: list[tuple[str, Any]] = [("picture", self.picture)]
        pairs += [("mark", self.mark)] if self.mark else []
        pairs += [("question", self.question), ("tokens", self.tokens), *(("method", m) for m in self.methods)]
        pairs += [] if self.stage is None else [("stage", self.stage)]
        return urlencode(pairs)

    @classmethod
    def read(cls, found: list[tuple[str, str]]) -> "State":
        """The state of a link, from its parameters in order.

        Raises:
            VisionDropError: a value that no such link has.
        """
        one = dict(found)
        methods = tuple(value for name, value in found if name == "method") or DEFAULT_METHODS
        stage = one.get("stage")
        if stage is not None and not stage.isdecimal():
            raise VisionDropError(f"the link's stage {short(stage)} is no number: leave it out")
        return cls(
            picture=one.get("picture", OWN),
            question=one.get("question", ""),
            tokens=read_budget(one.get("tokens", str(DEFAULT_TOKENS))),
            methods=methods,
            stage=None if stage is None else int(stage),
            mark=one.get("mark", ""),
        )


def short(text: object) -> str:
    """The text in quotes, cut to a length that fits into a sentence."""
    return repr(text if len(str(text)) <= 60 else str(text)[:57] + "...")


def read_budget(text: str) -> Budget:
    """ "64" -> 64, "22%" -> "22%".

    Raises:
        VisionDropError: neither a count nor a share.
    """
    text = text.strip()
    if text.endswith("%"):
        share_of(text)
        return text
    if not text.isdecimal() or not text.isascii():
        raise VisionDropError(f"the budget {short(text)} is neither a number of tokens nor a share: write 64 or 22%")
    return int(text)


def read_method(text: str) -> tuple[str, dict[str, str]]:
    """ "visiondrop merge=off" -> ("visiondrop", {"merge": "off"}).

    Raises:
        VisionDropError: an unknown method or option; the message names those that there are.
    """
    name, *pairs = text.split() or [""]
    options = {}
    for pair in pairs:
        key, sign, value = pair.partition("=")
        if not sign or not key:
            raise VisionDropError(
                f"{short(text)}: write options after the method as name=value, e.g. visiondrop merge=off"
            )
        options[key] = value
    check_options(name, options)
    return name, options


def check(state: State) -> None:
    """What can be refused before anything is computed.

    Raises:
        VisionDropError: no question, one that is too long, no method, or too many.
    """
    if not state.question.strip():
        raise VisionDropError("Write a question about the picture.")
    if len(state.question) > MOST_LETTERS:
        raise VisionDropError(
            f"The question has {len(state.question)} characters; this page takes up to {MOST_LETTERS}: shorten it."
        )
    if not state.methods:
        raise VisionDropError("Choose at least one method.")
    if len(state.methods) > MOST_METHODS:
        raise VisionDropError(f"{len(state.methods)} methods were chosen; this page compares up to {MOST_METHODS}.")


def command_lines(state: State, model: str, file: str, new: int, dtype: str) -> str:
    """One `visiondrop ask` per method, for a shell.

    Args:
        model: folder or hub id; file: the picture's path, as far as known; new: `--max-new-tokens`; dtype: "bfloat16".
    """
    lines = []
    for text in state.methods:
        name, options = read_method(text)
        words = ["python", "-m", "visiondrop", "ask", "--model", model, "--image", file]
        words += ["--question", state.question, "--max-new-tokens", str(new), "--dtype", dtype, "--method", name]
        words += [] if name == "none" else ["--tokens", str(state.tokens)]
        words += [word for pair in options.items() for word in ("--option", "=".join(pair))]
        lines.append(shlex.join([*words, "--show", f"kept-{name}.png"]))
    return "\n".join(lines)


PYTHON = """\
import torch
import visiondrop
from visiondrop.demo.media import open_picture
from visiondrop.families import loader

loaded = loader().load({model!r}, torch.{dtype})
inputs = loaded.inputs(open_picture({file!r}), {question!r})

for method, tokens, options in {methods}:
    with visiondrop.apply(loaded.model, method, tokens, options=options, report=True) as handle:
        new = loaded.generate(inputs, do_sample=False, max_new_tokens={new})
        print(method, "answers", loaded.text(new[0]))
        print(handle.ledger)
        for stage in handle.report.stages:
            print(stage.layer, "keeps", stage.kept().tolist())
"""


def python(state: State, model: str, file: str, new: int, dtype: str) -> str:
    """The same as a Python program; arguments as in `command_lines`."""
    methods = [
        (name, None if name == "none" else state.tokens, options) for name, options in map(read_method, state.methods)
    ]
    lines = ",\n".join(f"    {entry!r}" for entry in [("none", None, {}), *methods])
    return PYTHON.format(
        model=model, file=file, question=state.question, methods=f"[\n{lines},\n]", new=new, dtype=dtype
    )
