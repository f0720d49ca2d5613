"""configs/tables.yaml as checked objects: which rows and columns a table or figure is made of, per variant."""

import re
import sys
from dataclasses import dataclass, field, fields
from functools import cache
from pathlib import Path
from typing import Any

import pandas as pd
import yaml

from eval.errors import EvaluationError
from eval.files import ROOT, check_keys
from eval.settings import number
from figures.data import paper
from visiondrop.cli import read_options
from visiondrop.methods.registry import available
from visiondrop.plans.shape import VisualShape

FILE = ROOT / "configs" / "tables.yaml"
VARIANTS = ("paper", "testbed")


@dataclass(frozen=True)
class Column:
    """One column: a benchmark's headline score, or one of its metrics (times `factor`, over `n` questions)."""

    benchmark: str
    head: str
    metric: str | None = None
    n: int | None = None
    factor: float = 1.0
    published: str | None = None
    group: str | None = ""

    @property
    def key(self) -> str:
        """Unique within a table."""
        return f"{self.benchmark}:{self.metric}" if self.metric else self.benchmark

    @property
    def paper_key(self) -> str:
        """The column in the paper's file."""
        return self.published or self.benchmark


@dataclass(frozen=True)
class Entry:
    """One table row at one budget.  `control` rows are shown but not ranked; `absent` says why a row cannot be run."""

    method: str
    label: str
    tokens: int
    options: dict[str, Any] = field(default_factory=dict, hash=False)
    control: bool = False
    absent: str = ""

    @property
    def is_base(self) -> bool:
        """The unpruned model, which ratios refer to."""
        return self.method == "none"


@dataclass(frozen=True)
class Variant:
    """A table or figure for one family of models; fields are explained at the top of configs/tables.yaml."""

    name: str
    kind: str
    title: str
    models: tuple[str, ...]
    protocol: str
    layout: str
    shape: VisualShape
    average: str
    columns: tuple[Column, ...]
    entries: tuple[Entry, ...]
    methods: str = "listed"
    published: pd.DataFrame | None = field(default=None, hash=False, compare=False)

    @property
    def base(self) -> Entry:
        """The unpruned row."""
        return next(e for e in self.entries if e.is_base)

    @property
    def published_at(self) -> list[int]:
        """Numbers of the entries that are the paper's, in the order of its rows; others were added for their rows."""
        theirs = set(_published_entries(self.published)) if self.published is not None else set()
        return [i for i, e in enumerate(self.entries) if e in theirs]


def options_of(pairs: list[str]) -> dict[str, Any]:
    """["score=text", "k=2"] as rows hold it: {"score": "text", "k": 2}."""
    return {name: number(value) for name, value in read_options(pairs).items()}


def label_of(method: str) -> str:
    """A method's name as papers write it: what its file's docstring begins with ("VisionZip (Yang et al., …)").

    A method without a file in visiondrop/methods, or whose file begins with something else (the controls), is shown
    under its registered name.
    """
    if method not in available():
        return method
    for name, module in list(sys.modules.items()):
        if name.startswith("visiondrop.methods.") and name.endswith(f".{method}"):
            label = re.split(r"[(:,]", module.__doc__ or "", maxsplit=1)[0].strip()
            return label if re.sub(r"\W", "", label).lower().startswith(method) else method
    return method


def _entries(raw: list[dict], where: str) -> tuple[Entry, ...]:
    """One `Entry` per method and budget, in the order of falling budgets."""
    out = []
    for item in raw:
        check_keys(item, {f.name for f in fields(Entry)}, where)
        options = options_of(item.get("options", []))
        more = {name: item[name] for name in ("control", "absent") if name in item}
        out += [Entry(item["method"], item["label"], t, options, **more) for t in item["tokens"]]
    return tuple(sorted(out, key=lambda e: -e.tokens))


def _published_entries(table: pd.DataFrame) -> tuple[Entry, ...]:
    return tuple(Entry(r.method, r.label, int(r.tokens)) for r in table.itertuples())


def _variant(name: str, kind: str, title: str, raw: dict) -> Variant:
    where = f"{FILE.name}, {name}, {kind}"
    check_keys(raw, {f.name for f in fields(Variant)} - {"name", "kind", "title", "published"} | {"paper"}, where)
    published = paper.load(raw["paper"]) if "paper" in raw else None
    keys = {f.name for f in fields(Column)}
    return Variant(
        name=name,
        kind=kind,
        title=title,
        models=tuple(raw["models"]),
        protocol=raw["protocol"],
        layout=raw["layout"],
        shape=VisualShape(**raw["shape"]),
        average=raw["average"],
        columns=tuple(Column(**check_keys(c, keys, f"{where}, columns")) for c in raw["columns"]),
        entries=_published_entries(published) if published is not None else _entries(raw["entries"], where),
        methods=raw.get("methods", "listed"),
        published=published,
    )


@cache
def load(file: Path = FILE) -> dict[str, dict[str, Variant]]:
    """Name -> variant name -> `Variant`; a wrong key is refused with its place."""
    raw = yaml.safe_load(file.read_text(encoding="utf-8"))
    return {
        name: {k: _variant(name, k, entry["title"], entry[k]) for k in VARIANTS if k in entry}
        for name, entry in raw.items()
    }


def variant(name: str, model: str | None = None) -> tuple[Variant, str]:
    """The variant that a model belongs to, and the model's name as it stands in rows.

    Args:
        name: "table1", "figure2", …
        model: checkpoint folder or hub id; default: the testbed.  A model that nothing lists is taken for one of the
            paper's kind.

    Raises:
        EvaluationError: the model belongs to another table.
    """
    everything = load()
    variants = everything[name]
    model = model or variants["testbed"].models[0]
    short = Path(model).name if Path(model).is_dir() or model.startswith((".", "/", "~")) else model
    for entry in variants.values():
        if model in entry.models or short in entry.models:
            return entry, Path(model).name if entry.kind == "testbed" else short
    if "paper" not in variants:
        raise EvaluationError(f"{name} is about the testbed only, not {model}")
    for other, entries in everything.items():
        if any(short in entry.models for entry in entries.values()):
            raise EvaluationError(
                f"{model} is a model of {other}; {name} is about {', '.join(variants['paper'].models)}"
            )
    return variants["paper"], short
