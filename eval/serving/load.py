"""Closed-loop load: as many clients as the concurrency says, each asks its next question when its last is answered.

A round asks the same pictures under every setting, one setting after the other, in an order that turns from round to
round; ratios are of one round, so that other work on the machine meets both sides alike.
"""

import statistics
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from eval.efficiency import record
from eval.errors import EvaluationError
from eval.models.server import fetch, version_of_server
from eval.results import fingerprint
from visiondrop.plans import flops
from visiondrop.plans.plan import Plan
from visiondrop.serving.command import configuration
from visiondrop.serving.images import Images

from .client import Answer, Watch, ask, body

FREE = "uniform"  # a method that chooses without looking: what its requests take less than another's is choosing
SAME = (
    "served model_fingerprint method tokens concurrency requests new_tokens round seed device dtype server_threads"
).split()


@dataclass(frozen=True)
class Case:
    """A method and its budget: what the requests of one side ask for."""

    method: str
    tokens: int | None = None

    @property
    def setting(self) -> dict[str, Any]:
        """As a request says it."""
        return {"method": self.method} if self.method == "none" else {"method": self.method, "tokens": self.tokens}

    def __str__(self) -> str:
        return self.method if self.tokens is None else f"{self.method} {self.tokens}"


def request_flops(plan: Plan, dims: flops.ModelDims, text: int, new_tokens: int) -> float:
    """What the server computes for one request: encoding, prefill (causal, head on one position) and decoding."""
    past = plan.counts[-1] + text
    total = flops.prefill(plan, dims, text, lean=True)
    for step in range(new_tokens - 1):
        total += dims.layers * flops.block(dims, 1, past + step, causal=True) + flops.head(dims, 1)
    return total


def percentiles(values: Sequence[float]) -> dict[str, float]:
    """p50 and p95 in milliseconds, of seconds."""
    return {name: 1e3 * float(np.percentile(values, q)) for name, q in (("p50", 50), ("p95", 95))}


class Target:
    """A running server of a model in the hub's layout.

    Attributes:
        url: of the server; name: of the model, as requests say it; about: what every row says of them.
    """

    def __init__(self, url: str, model: str | None = None, process: int | None = None):
        """model: folder or hub id, by default what the server calls its model; process: the server's first one, if it is here.

        Raises:
            EvaluationError: no server; VisionDropError: a model that is not served.
        """
        self.url, self.process = url.rstrip("/"), process
        self.name = fetch(f"{self.url}/v1/models")["data"][0]["id"]
        folder = model or self.name
        self.images = Images(configuration(folder))
        self.dims = self.images.adapter.dims()
        checkpoint = fingerprint.checkpoint(folder)
        self.about = {
            "served": version_of_server(self.url),
            "model": Path(folder).name,
            "model_fingerprint": checkpoint.fingerprint,
            "hidden": self.dims.hidden,
            "layers": self.dims.layers,
        }

    def plan(self, case: Case) -> Plan:
        """Of one picture; refused as the server would."""
        return self.images.plan(self.images.served.asked(case.setting), self.images.shape)

    def run(self, case: Case, seeds: Sequence[int], clients: int, new_tokens: int, tick: Callable) -> dict[str, Any]:
        """One side of a round: a picture for each seed, asked by `clients` clients.

        Returns:
            the measured fields of a row.
        """
        bodies = iter([body(self.name, seed, case.setting, new_tokens) for seed in seeds])
        lock, stop, answers = threading.Lock(), threading.Event(), []

        def client() -> None:
            while not stop.is_set():
                with lock:
                    asked = next(bodies, None)
                if asked is None:
                    return
                try:
                    found = ask(self.url, asked)
                except BaseException:
                    stop.set()
                    raise
                with lock:
                    answers.append(found)
                    tick()

        with Watch(self.url, self.process) as watch, ThreadPoolExecutor(clients) as pool:
            start = time.monotonic()
            try:
                for done in [pool.submit(client) for _ in range(clients)]:
                    done.result()
            finally:
                stop.set()  # Ctrl-C: questions under way are answered, no new one is asked
            seconds = time.monotonic() - start
        return self._measured(case, answers, seconds, new_tokens, watch)

    def _measured(
        self, case: Case, answers: list[Answer], seconds: float, new_tokens: int, watch: Watch
    ) -> dict[str, Any]:
        plan = self.plan(case)
        wrong = [a for a in answers if len(a.tokens) != new_tokens]
        lengths = {a.prompt for a in answers}
        if wrong or len(lengths) != 1:
            raise EvaluationError(
                f"{case}: {len(wrong)} of {len(answers)} answers have other than {new_tokens} tokens, prompts have {sorted(lengths)}: "
                "the server must honour ignore_eos and prune all these pictures alike",
                "batch",
            )
        text = lengths.pop() - plan.counts[-1]
        between = [gap for a in answers for gap in a.between]
        return {
            "seconds": seconds,
            "cpu_s_per_request": None if watch.cpu is None else watch.cpu / len(answers),
            "requests_per_s": len(answers) / seconds,
            "tokens_per_s": len(answers) * new_tokens / seconds,
            "ttft_ms": percentiles([a.first for a in answers]),
            "inter_token_ms": percentiles(between) if between else None,
            "kv_peak": watch.peak,
            "kv_tokens": watch.kv_tokens,
            "prefix_cache_hits": watch.hits,
            "text_tokens": text,
            "flops": request_flops(plan, self.dims, text, new_tokens),
            "ledger": plan.ledger(self.dims, text).as_dict(),
        }


def compared(rows: list[dict[str, Any]]) -> None:
    """Adds to every pruned row of a round its ratios to the unpruned one, and the share that choosing takes.

    `realised`: ratio of throughputs over ratio of FLOPs.  `cpu_ratio`: of the server's processor time for a request, which other
    work on the machine moves less.  `choosing`: what a request takes beyond one of `uniform` at the
    same budget, FLOPs allowed for, as a share of it; noise can make it negative.
    """
    base = next((r for r in rows if r["method"] == "none"), None)
    free = {r["tokens"]: r for r in rows if r["method"] == FREE}
    for row in rows:
        row["compared"] = None
        if base is not None and row is not base:
            speed, fewer = row["requests_per_s"] / base["requests_per_s"], base["flops"] / row["flops"]
            row["compared"] = {"ratio": speed, "flop_ratio": fewer, "realised": speed / fewer}
            row["compared"]["ttft_ratio"] = base["ttft_ms"]["p50"] / row["ttft_ms"]["p50"]
            spent = [one["cpu_s_per_request"] for one in (base, row)]
            row["compared"]["cpu_ratio"] = spent[0] / spent[1] if all(spent) else None
        other = free.get(row["tokens"])
        chosen = other is not None and row is not other
        row["choosing"] = (
            1 - row["requests_per_s"] / other["requests_per_s"] * row["flops"] / other["flops"] if chosen else None
        )


def identity(row: dict[str, Any]) -> tuple[Any, ...]:
    """Equal for measurements of the same."""
    return tuple(row[name] for name in SAME)


def order(cases: list[Case], turn: int) -> list[Case]:
    """The cases in the order of a round: begun one later from round to round, every other pass backwards."""
    at = turn % len(cases)
    turned = cases[at:] + cases[:at]
    return turned[::-1] if turn // len(cases) % 2 else turned


def medians(rows: list[dict[str, Any]]) -> list[str]:
    """Lines of a table: medians over rounds, with the least and the most of the ratio."""
    lines = [
        f"{'clients':>8}  {'case':<22}{'req/s':>9}{'tok/s':>8}{'TTFT p50':>10}{'p95':>9}{'token p50':>11}{'p95':>9}{'KV peak':>9}"
        f"{'ratio':>20}{'FLOPs':>7}{'realised':>10}{'CPU time':>10}{'choosing':>10}"
    ]
    groups: dict[tuple[int, str], list[dict[str, Any]]] = {}
    for row in rows:
        groups.setdefault((row["concurrency"], str(Case(row["method"], row["tokens"]))), []).append(row)
    for (clients, name), own in groups.items():

        def middle(part: str, inner: str | None = None, own=own) -> float:
            values = [r[part][inner] if inner else r[part] for r in own if r[part] is not None]
            return statistics.median(values) if values else float("nan")

        line = f"{clients:>8}  {name:<22}{middle('requests_per_s'):>9.2f}{middle('tokens_per_s'):>8.1f}"
        line += (
            f"{middle('ttft_ms', 'p50'):>10.0f}{middle('ttft_ms', 'p95'):>9.0f}{middle('inter_token_ms', 'p50'):>11.1f}"
        )
        line += f"{middle('inter_token_ms', 'p95'):>9.1f}{100 * middle('kv_peak'):>8.1f}%"
        ratios = [r["compared"]["ratio"] for r in own if r["compared"]]
        if ratios:
            spread = f"{statistics.median(ratios):.2f} ({min(ratios):.2f}-{max(ratios):.2f})"
            line += f"{spread:>20}{middle('compared', 'flop_ratio'):>7.2f}{100 * middle('compared', 'realised'):>9.0f}%"
            cpu = [r["compared"]["cpu_ratio"] for r in own if r["compared"]["cpu_ratio"]]
            line += f"{statistics.median(cpu):>10.2f}" if cpu else f"{'':>10}"
            line += f"{100 * middle('choosing'):>9.1f}%" if any(r["choosing"] is not None for r in own) else ""
        lines.append(line)
    return lines


def certificate(device: str, dtype: str, threads: int) -> dict[str, Any]:
    """Of a row; device, dtype and threads are the server's, on this machine."""
    return {**record.certificate(device, dtype), "kind": "served", "server_threads": threads}
