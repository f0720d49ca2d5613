"""The table of benchmarks (configs/benchmarks.yaml) as checked objects."""

import importlib.util
from dataclasses import dataclass, fields
from functools import cache
from pathlib import Path
from typing import Any

import yaml

from eval.errors import EvaluationError
from eval.files import ROOT, check_keys
from visiondrop.errors import closest

TABLE = ROOT / "configs" / "benchmarks.yaml"
GROUPS = ROOT / "configs" / "groups.yaml"
COUNTS = (
    *("mean", "pope", "pope_categories", "mme", "mmbench", "judged"),
    *("scored", "ocrbench", "mmstar", "seed", "mmmu", "box"),  # eval/scoring/records.py
    *("videomme", "mvbench", "mlvu", "longvideobench", "egoschema"),
)
PROTOCOLS = ("offline", "paper")
OPTIONAL = {"group", "upload", "server", "model", "conversation", "drawn", "imports", "videos", "form"}


@dataclass(frozen=True)
class DataSource:
    """One split of one data set that a task reads, and the columns it cannot do without."""

    path: str
    config: str | None
    split: str
    columns: tuple[str, ...]


@dataclass(frozen=True)
class Benchmark:
    """One benchmark under one protocol; the fields are explained at the top of configs/benchmarks.yaml."""

    name: str
    title: str
    protocol: str
    source: str
    task: str
    split: str
    rows: int | None
    data: tuple[DataSource, ...]
    headline: dict[str, float]
    counts: str | None
    cluster: str | None
    prompt: str
    group: int = 1
    upload: str | None = None
    server: str | None = None
    model: str = "liuhaotian/llava-v1.5-7b"
    conversation: str = "vicuna_v1"
    drawn: str | None = None
    imports: tuple[str, ...] = ()
    videos: str | None = None
    form: str = "video"

    @property
    def default_model(self) -> str:
        """`model`, as a path where it is a folder of this repository."""
        return str(ROOT / self.model) if (ROOT / self.model).is_dir() else self.model

    @property
    def judged(self) -> bool:
        """Whether a language model judges the answers."""
        return self.counts == "judged"

    @property
    def folder(self) -> Path:
        """Folder that holds the task's yaml file."""
        package, _, rest = self.source.partition("/")
        spec = importlib.util.find_spec(package)
        if spec is None or not spec.submodule_search_locations:
            raise EvaluationError(
                f"package {package!r} of task {self.task!r} is not installed; run: bash scripts/setup.sh"
            )
        return Path(next(iter(spec.submodule_search_locations))) / rest

    def check_limit(self, limit: int | None) -> None:
        """Refuse a limit that would cut rows that are scored together."""
        if limit is not None and (limit < 1 or limit % self.group):
            allowed = "a positive number" if self.group == 1 else f"a positive multiple of {self.group}"
            raise EvaluationError(f"--limit {limit}: {self.title} needs {allowed}")


def _protocol(name: str, title: str, protocol: str, entry: dict[str, Any]) -> Benchmark:
    where = f"{TABLE.name}, benchmark {name}, protocol {protocol}"
    allowed = {f.name for f in fields(Benchmark)} - {"name", "title", "protocol"}
    check_keys(entry, allowed, where, allowed - OPTIONAL)
    keys = {f.name for f in fields(DataSource)}
    data = tuple(
        DataSource(**{**check_keys(d, keys, f"{where}, data", keys), "columns": tuple(d["columns"])})
        for d in entry["data"]
    )
    if bool(entry["headline"]) == bool(entry.get("upload")):
        raise EvaluationError(f"{where}: either a headline metric or an upload file, not both or none")
    if entry["counts"] not in (*COUNTS, None):
        raise EvaluationError(f"{where}: counts {entry['counts']!r}; {closest(entry['counts'], COUNTS)}")
    return Benchmark(
        name=name, title=title, protocol=protocol, **{**entry, "data": data, "imports": tuple(entry.get("imports", ()))}
    )


@cache
def load(table: Path = TABLE) -> dict[str, dict[str, Benchmark]]:
    """Benchmark name -> protocol -> `Benchmark`; a wrong key is refused with its place."""
    raw = yaml.safe_load(table.read_text(encoding="utf-8"))
    out: dict[str, dict[str, Benchmark]] = {}
    for name, entry in raw.items():
        check_keys(entry, ("title", "protocols"), f"{table.name}, benchmark {name}", ("title", "protocols"))
        check_keys(entry["protocols"], PROTOCOLS, f"{table.name}, benchmark {name}, protocols")
        out[name] = {p: _protocol(name, entry["title"], p, e) for p, e in entry["protocols"].items()}
    return out


def get(name: str, protocol: str) -> Benchmark:
    """The benchmark under a protocol, or an error that lists the allowed names."""
    table = load()
    if name not in table:
        raise EvaluationError(f"unknown benchmark {name!r}: {closest(name, table)}")
    if protocol not in table[name]:
        raise EvaluationError(f"unknown protocol {protocol!r} for {name}: {closest(protocol, table[name])}")
    return table[name][protocol]


@cache
def groups() -> dict[str, tuple[str, ...]]:
    """Name of a group -> its benchmarks, those of groups inside it in their place.

    Raises:
        EvaluationError: a member is neither a benchmark nor a group.
    """
    raw: dict[str, list[str]] = yaml.safe_load(GROUPS.read_text(encoding="utf-8"))

    def members(name: str) -> tuple[str, ...]:
        found: tuple[str, ...] = ()
        for member in raw[name]:
            if member not in raw and member not in load():
                raise EvaluationError(f"{GROUPS.name}, {name}: unknown benchmark {member!r}: {closest(member, load())}")
            found += members(member) if member in raw else (member,)
        return found

    return {name: members(name) for name in raw}
