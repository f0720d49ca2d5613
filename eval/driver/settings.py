"""The settings of a run and its identity: equal identities share answers, different ones never do."""

import hashlib
import json
import re
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from eval.results.fingerprint import version_of

LATER = ("layout", "judge_url", "judge_model")  # part of an identity only where they are given
IDENTITY = 1  # raise when the meaning of a setting changes, so that older answers are not reused


@dataclass(frozen=True)
class Settings:
    """Everything a run is told; paths are absolute.  Processes of one run get it as JSON.

    Attributes:
        model, model_name, model_fingerprint: path or hub id, its short name, `fingerprint.Checkpoint.fingerprint`.
        tokens: the budget, or None with explicit settings.
        data, data_fingerprint: --data folder or None; "hub" or the fingerprint of its files.
        device: cpu, cuda, cuda:N or auto; dtype: float32, float16 or bfloat16.
        folder: the run's folder; out: the results file.
        reuse: "on" = questions of one image share its pruned cache.
        compile: "on" = answers are generated with static shapes (`visiondrop.apply(..., compile=True)`).
        layout: how LLaVA-NeXT cuts pictures, "anyres" or "fixed-2880"; None: as the checkpoint says.
        judge_url, judge_model: who judges free-form answers.
    """

    benchmark: str
    protocol: str
    task: str
    method: str
    tokens: int | None
    options: dict[str, Any] = field(hash=False)
    model: str
    model_name: str
    model_fingerprint: str
    data: str | None
    data_fingerprint: str
    limit: int | None
    batch_size: int
    processes: int
    dtype: str
    device: str
    attention: str
    conversation: str
    seed: int
    runs: str
    out: str
    reuse: str = "off"
    compile: str = "off"
    layout: str | None = None
    judge_url: str | None = None
    judge_model: str | None = None

    def identity(self) -> dict[str, Any]:
        """All that can change an answer or its score; not: processes, paths of the same files, where results go."""
        left_out = ("processes", "runs", "out", "model", "data")
        kept = {k: v for k, v in asdict(self).items() if k not in left_out and not (k in LATER and v is None)}
        for switch in ("reuse", "compile"):
            if kept[switch] == "off":
                del kept[switch]
        kept["device"] = "cpu" if self.device == "cpu" else "cuda"
        packages = {p: version_of(p) for p in ("lmms_eval", "transformers", "torch")}
        return {**kept, "identity": IDENTITY, "packages": packages}

    @property
    def run(self) -> str:
        """12 hex digits of the identity."""
        text = json.dumps(self.identity(), sort_keys=True, ensure_ascii=False)
        return hashlib.sha256(text.encode()).hexdigest()[:12]

    @property
    def folder(self) -> Path:
        """runs/<benchmark>-<protocol>-<model>-<method>-<tokens>-<run>."""
        budget = "settings" if self.tokens is None else str(self.tokens)
        words = [self.benchmark, self.protocol, self.model_name, self.method, budget, self.run]
        return Path(self.runs) / "-".join(re.sub(r"[^\w.]+", "_", w) for w in words)

    def to_json(self) -> str:
        """For the processes of a run."""
        return json.dumps(asdict(self), ensure_ascii=False, indent=1)

    @classmethod
    def from_json(cls, text: str) -> "Settings":
        """Back from `to_json`."""
        return cls(**json.loads(text))


def number(text: Any) -> Any:
    """An option's value as rows hold it: "2" -> 2, "0.5" -> 0.5, all else unchanged."""
    for kind in (int, float):
        try:
            return kind(text)
        except (TypeError, ValueError):
            continue
    return text
