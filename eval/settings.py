"""The settings of a run, each declared once: the command line's flag, its check and the row's field follow from it.

A new switch is a field of `Settings` (of `ModelSettings` where the model needs it).  Its declaration says what it is, which
flag gives it, what it may be, which field of a row holds it, and when it is part of a run's identity: equal identities
share answers, different ones never do.
"""

import argparse
import dataclasses
import hashlib
import json
import re
import types
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any, get_args, get_origin, get_type_hints

from eval.errors import EvaluationError
from eval.files import ROOT
from eval.machine import version_of
from llava.anyres import LAYOUTS

IDENTITY = 1  # raise when the meaning of a setting changes, so that older answers are not reused
ALWAYS, GIVEN, NEVER = "always", "given", "never"
ON_OFF = ("on", "off")
DTYPES = ("auto", "float32", "float16", "bfloat16")
ATTENTION = ("sdpa", "eager", "flash_attention_2")


def setting(
    help: str,
    default: Any = dataclasses.MISSING,
    *,
    flag: str | None = None,
    kind: type = str,
    allowed: Sequence[str] | None = None,
    least: int | None = None,
    metavar: str | None = None,
    row: str | bool = True,
    identity: str = ALWAYS,
    added: bool = False,
) -> Any:
    """A field of the settings.

    Args:
        help: one phrase, for --help and for the format of rows.
        default: where no flag gives it; left out: the driver finds it.
        flag: "--name", or "name" by place; None: there is none.  kind: what the flag's text becomes.
        allowed: the words it may be; least: the smallest whole number.
        row: the field of a row that holds it, by default of the same name; False: none does.
        identity: always, given (only where it differs from the default) or never.
        added: rows from before this field are whole without it.
    """
    told = dict(help=help, flag=flag, kind=kind, allowed=allowed, least=least, metavar=metavar)
    metadata = {**told, "row": row, "identity": identity, "added": added}
    if isinstance(default, dict):
        return dataclasses.field(default_factory=dict, metadata=metadata, hash=False, kw_only=True)
    return dataclasses.field(default=default, metadata=metadata, kw_only=True)


@dataclass(frozen=True)
class ModelSettings:
    """What a model of eval/models is told: the checkpoint, its pruning, and how it is run."""

    model: str = setting(
        "checkpoint folder or hub id (default: the benchmark's 7B model)", flag="--model", row=False, identity=NEVER
    )
    method: str = setting("pruning method; none is a method", "visiondrop")
    wrapper: str | None = setting(
        "lmms-eval's own class for the model (default: by its type; null: our llava)",
        None,
        flag="--wrapper",
        metavar="NAME",
        identity=GIVEN,
        added=True,
    )
    tokens: int | None = setting(
        "budget: mean visual tokens per LLM layer; null with explicit settings or a share", None
    )
    share: str | None = setting("budget as a share of each picture's tokens", None, identity=GIVEN, added=True)
    options: dict[str, Any] = setting("options given to the method", {})
    layout: str | None = setting(
        "LLaVA-NeXT: how pictures are cut (default: as the checkpoint says)",
        None,
        flag="--layout",
        allowed=LAYOUTS,
        row=False,
        identity=GIVEN,
    )
    batch_size: int = setting("questions per generate call", 1, flag="--batch-size", kind=int, least=1)
    reuse: str = setting(
        "on: questions of one image share its pruned cache",
        "off",
        flag="--reuse",
        allowed=ON_OFF,
        identity=GIVEN,
        added=True,
    )
    compile: str = setting(
        "on: static shapes (CUDA graphs, torch.compile); a row also says partly or eager, where some or all answers of the "
        "last session had none",
        "off",
        flag="--compile",
        allowed=ON_OFF,
        identity=GIVEN,
        added=True,
    )
    dtype: str = setting(
        "of the weights; auto: float32 on the CPU; on cuda float16, under a wrapper bfloat16",
        "auto",
        flag="--dtype",
        allowed=DTYPES,
    )
    device: str | None = setting(
        "cpu, cuda, cuda:N, or auto (one model over all cards); default: cuda if any", None, flag="--device", row=False
    )
    attention: str = setting("attention implementation", "sdpa", flag="--attn", allowed=ATTENTION)
    server: str | None = setting(
        "address of a running visiondrop serve: it answers in place of a model loaded here",
        None,
        flag="--server",
        metavar="URL",
        row=False,
        identity=NEVER,
    )
    served: str | None = setting(
        "vllm and the version of the server that answered; null: the model was loaded here",
        None,
        identity=GIVEN,
        added=True,
    )
    conversation: str = setting("conversation template (default: the benchmark's)", "vicuna_v1", flag="--conversation")

    @classmethod
    def of(cls, **told: Any) -> "ModelSettings":
        """From keywords; what is no setting is an option of the method."""
        known = {entry.name for entry in fields(cls)}
        options = {**told.pop("options", {}), **{name: told.pop(name) for name in told.keys() - known}}
        return cls(**told, options=options)

    def placed(self) -> "ModelSettings":
        """With device and dtype filled in.

        Raises:
            EvaluationError: a card is asked for and there is none.
        """
        import torch

        device = self.device or ("cuda" if torch.cuda.is_available() else "cpu")
        if device != "cpu" and not torch.cuda.is_available():
            raise EvaluationError(f"--device {device} was given and torch finds no card; use --device cpu", "batch")
        half = "float16" if self.wrapper is None else "bfloat16"
        dtype = self.dtype if self.dtype != "auto" else ("float32" if device == "cpu" else half)
        return replace(self, device=device, dtype=dtype)

    @property
    def budget(self) -> int | str | None:
        """What `visiondrop.apply` takes."""
        return self.tokens if self.share is None else self.share

    @property
    def kind_of_device(self) -> str:
        """cpu or cuda: answers depend on no more than that."""
        return "cpu" if self.device == "cpu" else "cuda"


@dataclass(frozen=True)
class Settings(ModelSettings):
    """Everything a run is told; paths are absolute.  Processes of one run get it as JSON."""

    benchmark: str = setting("name in configs/benchmarks.yaml", flag="benchmark")
    protocol: str = setting(
        "offline: local splits scored here; paper: the paper's splits and prompts; rows are compared within one only",
        "offline",
        flag="--protocol",
    )
    task: str = setting("lmms-eval task")
    model_name: str = setting("hub id, or name of the checkpoint folder", row="model")
    model_fingerprint: str = setting("of the checkpoint's configuration and weights, or the hub revision")
    limit: int | None = setting("only the first N questions; the row is marked partial", None, flag="--limit", kind=int)
    processes: int = setting(
        "data-parallel processes of the last session, one whole model each",
        1,
        flag="--processes",
        kind=int,
        least=1,
        identity=NEVER,
    )
    data: str | None = setting(
        "folder that holds the data sets; default: the hub",
        None,
        flag="--data",
        kind=Path,
        metavar="DIR",
        row=False,
        identity=NEVER,
    )
    data_fingerprint: str = setting("hub, or the fingerprint of the local files", row="data")
    judge_url: str | None = setting(
        "OpenAI-compatible endpoint that judges free answers (videos)",
        None,
        flag="--judge-url",
        metavar="URL",
        row=False,
        identity=GIVEN,
    )
    judge_model: str | None = setting(
        "its model; a key is taken from $OPENAI_API_KEY",
        None,
        flag="--judge-model",
        metavar="NAME",
        row=False,
        identity=GIVEN,
    )
    seed: int = setting("of Python, numpy and torch", 0, flag="--seed", kind=int)
    out: str = setting(
        "results file", ROOT / "results" / "local.jsonl", flag="--out", kind=Path, row=False, identity=NEVER
    )
    runs: str = setting(
        "folder for answers and samples", ROOT / "results" / "runs", flag="--runs", kind=Path, row=False, identity=NEVER
    )

    def identity(self) -> dict[str, Any]:
        """All that can change an answer or its score; not: processes, paths of the same files, where results go."""
        kept = {}
        for entry in fields(self):
            value, when = getattr(self, entry.name), entry.metadata["identity"]
            if when == ALWAYS or (when == GIVEN and value != entry.default):
                kept[entry.name] = value
        packages = {p: version_of(p) for p in ("lmms_eval", "transformers", "torch")}
        return {**kept, "device": self.kind_of_device, "identity": IDENTITY, "packages": packages}

    @property
    def run(self) -> str:
        """12 hex digits of the identity."""
        text = json.dumps(self.identity(), sort_keys=True, ensure_ascii=False)
        return hashlib.sha256(text.encode()).hexdigest()[:12]

    @property
    def folder(self) -> Path:
        """runs/<benchmark>-<protocol>-<model>-<method>-<tokens>-<run>."""
        budget = "settings" if self.budget is None else str(self.budget)
        words = [self.benchmark, self.protocol, self.model_name, self.method, budget, self.run]
        return Path(self.runs) / "-".join(re.sub(r"[^\w.]+", "_", w) for w in words)

    def row(self) -> dict[str, Any]:
        """The fields of a row that the settings fill."""
        told = {name: getattr(self, entry.name) for name, entry in row_entries().items()}
        partial = self.limit is not None
        return {**told, "run": self.run, "folder": self.folder.name, "device": self.kind_of_device, "partial": partial}

    def to_json(self) -> str:
        """For the processes of a run."""
        return json.dumps(asdict(self), ensure_ascii=False, indent=1)

    @classmethod
    def from_json(cls, text: str) -> "Settings":
        """Back from `to_json`."""
        return cls(**json.loads(text))


def row_entries() -> dict[str, dataclasses.Field]:
    """Field of a row -> the setting that fills it."""
    named = ((entry.metadata["row"], entry) for entry in fields(Settings))
    return {entry.name if name is True else name: entry for name, entry in named if name}


def row_fields() -> dict[str, tuple[tuple, str]]:
    """Field of a row -> (types, what it is), as eval/results/rows.py has them; None among the types: may be empty."""
    hints = get_type_hints(Settings)
    return {name: (_types(hints[entry.name]), entry.metadata["help"]) for name, entry in row_entries().items()}


def added_row_fields() -> tuple[str, ...]:
    """Fields without which older rows are whole."""
    return tuple(name for name, entry in row_entries().items() if entry.metadata["added"])


def _types(hint: Any) -> tuple:
    """`int | None` -> (int, None)."""
    if get_origin(hint) is types.UnionType:
        return tuple(None if kind is type(None) else kind for kind in get_args(hint))
    return (get_origin(hint) or hint,)


def add_flags(parser: argparse.ArgumentParser) -> None:
    """The flags of all settings that have one; what is not given is None."""
    for entry in fields(Settings):
        told = entry.metadata
        if told["flag"] is None:
            continue
        named: dict[str, Any] = {"help": told["help"]}
        if told["flag"].startswith("-"):
            named |= {"dest": entry.name, "metavar": told["metavar"], "choices": told["allowed"], "type": told["kind"]}
        parser.add_argument(told["flag"], **named)


def given(arguments: argparse.Namespace) -> dict[str, Any]:
    """The settings that flags gave, checked; of the others the defaults hold.

    Raises:
        EvaluationError: a number is too small.
    """
    flags = {entry.name: entry.metadata for entry in fields(Settings) if entry.metadata["flag"] is not None}
    out = {name: value for name in flags if (value := getattr(arguments, name)) is not None}
    for name, value in out.items():
        least = flags[name]["least"]
        if least is not None and value < least:
            raise EvaluationError(f"{flags[name]['flag']} {value}: give a number of at least {least}")
    return out


def number(text: Any) -> Any:
    """An option's value as rows hold it: "2" -> 2, "0.5" -> 0.5, all else unchanged."""
    for kind in (int, float):
        try:
            return kind(text)
        except (TypeError, ValueError):
            continue
    return text
