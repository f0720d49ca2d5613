"""Whether `visiondrop advise` says the truth, on a testbed whose accuracies are known.

    python -m eval.advise_check              # measures (resumes), writes results/advise/testbed.jsonl and .md
    python -m eval.advise_check --report     # only the page, from the committed rows

Agreement with the unpruned model is measured on validation questions, accuracies are the test set's in the committed
rows.  Two questions: is the order by agreement the order by accuracy, and what does the recommendation cost on the test
set, over draws of 200 validation questions.  The draws share one table: a setting that `advise` would drop early in a draw is
dropped there too (tests/eval/test_advise_check.py holds it against `visiondrop.advise` itself).  A larger --questions goes on
with the rows of a smaller one.
"""

import argparse
import math
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy.stats import kendalltau, spearmanr
from torch import Tensor
from tqdm import tqdm

import visiondrop
from eval.efficiency import record
from eval.errors import EvaluationError
from eval.files import ROOT, write_whole
from eval.results import rows
from visiondrop.advice.measure import Reference, compare, forced, prepare, under
from visiondrop.advice.run import BLOCK
from visiondrop.advice.samples import Sample, fingerprint, read_samples
from visiondrop.advice.settings import Setting, settings_of
from visiondrop.advice.stats import Summary, is_out, recommend, summarise
from visiondrop.advice.store import Rows
from visiondrop.errors import command_line
from visiondrop.families import adapter_for, loader
from visiondrop.reuse.tower import TowerMemory, remembering

OUT = ROOT / "results" / "advise" / "testbed.jsonl"
METHODS = ("visiondrop", "vispruner", "visionzip", "divprune", "scope", "fastv", "uniform")
TOKENS = (192, 128, 64, 32)
BATCH, LONGEST = 16, 8  # questions of a pass; new tokens of an answer
DRAWS, SIZE, LOSSES, RESAMPLES = 10, 200, (0.01, 0.05), 2000
CLOSE = 5.0  # points: the settings among which a user really has to choose


def draws(total: int, count: int = DRAWS, size: int = SIZE) -> list[np.ndarray]:
    """[count] sorted places of questions, drawn without replacement within a draw, the same ones every time."""
    rng = np.random.default_rng(0)
    return [np.sort(rng.choice(total, min(size, total), replace=False)) for _ in range(count)]


def batches(asked: Mapping[int, Sample], loaded: Any) -> Iterator[tuple[list[int], dict[str, Any]]]:
    """(numbers, inputs) of up to BATCH questions whose prompts are equally long, so that nothing is padded."""
    groups: dict[int, list[tuple[int, dict]]] = {}
    for i, sample in asked.items():
        inputs = prepare(loaded, sample)
        group = groups.setdefault(inputs["input_ids"].shape[1], [])
        group.append((i, inputs))
        if len(group) == BATCH:
            yield _joined(groups.pop(inputs["input_ids"].shape[1]))
    for group in groups.values():
        yield _joined(group)


def _joined(group: list[tuple[int, dict[str, Any]]]) -> tuple[list[int], dict[str, Any]]:
    lists = {k: [x for _, inputs in group for x in inputs[k]] for k in ("images", "image_sizes")}
    return [i for i, _ in group], {"input_ids": torch.cat([inputs["input_ids"] for _, inputs in group]), **lists}


def answers(loaded: Any, inputs: dict[str, Any]) -> list[Tensor]:
    """[A] unpruned greedy ids of each row, up to its end token."""
    ids, end = (
        loaded.generate(inputs, do_sample=False, max_new_tokens=LONGEST),
        loaded.model.generation_config.eos_token_id,
    )
    stops = [(row == end).nonzero() for row in ids]
    return [row[: int(at[0]) + 1] if len(at) else row for row, at in zip(ids, stops)]


def read(
    handle: Any, loaded: Any, numbers: list[int], inputs: dict[str, Any], settings: Sequence[Setting], store: Rows
):
    """What every setting makes of a batch, by answers of one length, as rows of `visiondrop advise`."""
    with handle.pause():
        given = answers(loaded, inputs)
    for length in {len(ids) for ids in given}:
        rows_of = [r for r, ids in enumerate(given) if len(ids) == length]
        part = {"input_ids": inputs["input_ids"][rows_of]}
        part |= {k: [inputs[k][r] for r in rows_of] for k in ("images", "image_sizes")}
        ids = torch.stack([given[r] for r in rows_of])
        with handle.pause():
            logits, total = forced(loaded.model, part, ids)
        end, stop = total - length + 1, loaded.model.generation_config.eos_token_id
        counted = length - int(length > 1 and int(ids[0, -1]) == stop)
        held = [Reference(a, counted, x.float().log_softmax(-1), end, "") for a, x in zip(ids, logits)]
        for setting in settings:
            with under(handle, setting):
                told = forced(loaded.model, part, ids, end)[0]
            for r, one, x in zip(rows_of, held, told):
                store.add("cell", sample=numbers[r], setting=setting.name, **compare(one, x))


def measure(model: str, data: str, questions: int, folder: Path, out: Path, minutes: float = math.inf) -> None:
    """The table that all draws share: questions under every setting, one line per setting.

    Args:
        questions: the first N of the set; minutes: read no further after these; the table holds what was read.
    """
    samples, _ = read_samples(data)
    loaded = loader().load(model, torch.float32)
    settings, _ = settings_of(METHODS, TOKENS, adapter_for(loaded.model).shape())
    identity = {"model": model, "data": fingerprint(samples), "settings": [s.name for s in settings]}
    store, work = Rows(folder, identity), {}
    if store.certificate is None:
        store.add("run", identity=identity)

    def known(i: int) -> bool:
        return all((i, setting.name) in store.cells for setting in settings)

    left = {i: sample for i, sample in enumerate(samples[:questions]) if not known(i)}
    end = time.monotonic() + 60 * minutes
    with visiondrop.apply(loaded.model, "none") as handle, tqdm(total=len(left), unit="question") as bar:
        for some, inputs in batches(left, loaded):
            if time.monotonic() > end:
                break
            with remembering(TowerMemory(projections=True)):
                read(handle, loaded, some, inputs, settings, store)
            bar.update(len(some))
        for setting in settings:
            with under(handle, setting):
                work[setting.name] = {"tflops": handle.ledger.flops / 1e12, "mean": handle.ledger.mean}
    numbers = [i for i in range(min(questions, len(samples))) if known(i)]
    about = record.certificate("cpu", "float32") | {"model": Path(model).name, "data": data}
    counted = [store.cells[i, settings[0].name]["tokens"] for i in numbers]
    keys = {"samples": numbers, "pictures": [samples[i].key for i in numbers], "tokens": counted}
    lines = [{"kind": "advise-questions", **about, **keys}]
    for name, cost in work.items():
        mine = [store.cells[i, name] for i in numbers]
        told = {"same": [c["same"] for c in mine], "kl": [round(c["kl"], 5) for c in mine]}
        told |= {"answer": [int(c["answer"]) for c in mine]}
        lines.append({"kind": "advise-setting", **about, "setting": name, **cost, **told})
    out.parent.mkdir(parents=True, exist_ok=True)
    out.unlink(missing_ok=True)
    record.append(out, lines)


class Table:
    """What was measured, and what the test set says.

    Attributes:
        questions: the line that all settings share; settings: name -> line; accuracy: name -> per cent on the test set.
        unpruned: per cent.
    """

    def __init__(self, lines: Sequence[dict[str, Any]], known: Sequence[dict[str, Any]]):
        self.questions = next(line for line in lines if line["kind"] == "advise-questions")
        every = {line["setting"]: line for line in lines if line["kind"] == "advise-setting"}
        mine = [r for r in known if r["model"] == self.questions["model"] and not r["options"] and not r["partial"]]
        scores = {f"{r['method']}:{r['tokens']}": r["score"] for r in mine if r["tokens"]}
        self.unpruned = next(r["score"] for r in mine if r["method"] == "none")
        self.settings = {name: line for name, line in every.items() if name in scores}
        self.accuracy = {name: scores[name] for name in self.settings}
        if len(self.settings) < 3:
            raise EvaluationError("fewer than three measured settings have a row on the test set: nothing to correlate")

    def summary(self, name: str, places: Sequence[int]) -> Summary:
        """A setting over some of the questions, as `advise` sums it up."""
        line, tokens, keys = self.settings[name], self.questions["tokens"], self.questions["pictures"]
        columns = {"same": line["same"], "kl": line["kl"], "answer": line["answer"], "tokens": tokens}
        cells = [{"sample": i, **{k: v[i] for k, v in columns.items()}} for i in places]
        out = summarise(name, cells, {}, keys)
        out.tflops, out.mean_tokens = line["tflops"], line["mean"]
        return out

    def found(self, places: Sequence[int], loss: float) -> list[Summary]:
        """What `advise` would find on these questions, settings dropped after the block in which they fail."""
        out = []
        for name in self.settings:
            for end in range(BLOCK, len(places) + BLOCK, BLOCK):
                told = self.summary(name, places[:end])
                told.dropped = is_out(told, loss)
                if told.dropped:
                    break
            out.append(told)
        return out


def correlations(table: Table, names: Sequence[str], column: str) -> dict[str, tuple[float, float, float]]:
    """Spearman and Kendall (tau-b) of a column with accuracy: (value, 95 % interval).

    Args:
        column: "same" (share of tokens) or "kl" (nats per token, its sign turned).

    The interval draws pictures and settings with replacement, both at once: the settings are a few of many.
    """
    accuracy = np.array([table.accuracy[n] for n in names])
    groups = {key: i for i, key in enumerate(dict.fromkeys(table.questions["pictures"]))}
    member = np.array([groups[key] for key in table.questions["pictures"]])
    sign = 1 if column == "same" else -1
    top = np.stack([np.bincount(member, table.settings[n][column], len(groups)) for n in names]) * sign
    bottom = np.bincount(member, table.questions["tokens"], len(groups))
    rng, out = np.random.default_rng(0), {}
    weights = rng.multinomial(len(groups), np.full(len(groups), 1 / len(groups)), RESAMPLES)
    shares, chosen = (
        weights @ top.T / (weights @ bottom)[:, None],
        rng.integers(len(names), size=(RESAMPLES, len(names))),
    )
    for name, rank in (("Spearman", spearmanr), ("Kendall", kendalltau)):
        many = [rank(share[pick], accuracy[pick])[0] for share, pick in zip(shares, chosen)]
        low, high = np.nanquantile(many, [0.025, 0.975])
        out[name] = (float(rank(top.sum(1), accuracy)[0]), float(low), float(high))
    return out


def drawn(table: Table, loss: float) -> list[str]:
    """What is recommended in every draw at a loss, and what it costs on the test set."""
    total, losses, told = len(table.questions["tokens"]), [], []
    for number, draw in enumerate(draws(total), 1):
        best = recommend(table.found(draw, loss), loss)
        losses.append(0.0 if best is None else table.unpruned - table.accuracy[best.name])
        shown = "—" if best is None else f"{100 * best.agreement:.1f} %"
        told.append(f"| {number} | {best.name if best else 'nothing passes'} | {shown} | {losses[-1]:+.2f} |")
    kept, named = sum(x <= 1 for x in losses), sum("nothing passes" not in line for line in told)
    return [
        "",
        f"`--loss {100 * loss:g}%`: a setting recommended in {named} of {len(told)} draws of {SIZE} questions (two draws share "
        f"{100 * min(1.0, SIZE / total):.0f} % of theirs), no more than 1 point of accuracy lost in {kept}.",
        "",
        "| draw | recommended | same top p | points lost on the test set |",
        "| --- | --- | --- | --- |",
        *told,
    ]


def page(table: Table) -> str:
    """Settings, correlations and draws, for a person."""
    total = len(table.questions["tokens"])
    every = [table.summary(name, range(total)) for name in table.settings]
    close = [s.name for s in every if table.unpruned - table.accuracy[s.name] <= CLOSE]
    pictures = len(set(table.questions["pictures"]))
    lines = [
        f"# What `visiondrop advise` is worth on {table.questions['model']}",
        "",
        f"{total} validation questions on {pictures} pictures ({table.questions['date'][:10]}), accuracies of the test "
        f"set (unpruned {table.unpruned:.2f}). A small stand-in trained on drawn scenes.",
        "",
        "| settings | accuracy against | Spearman | Kendall |",
        "| --- | --- | --- | --- |",
    ]
    for what, names in (
        (f"all {len(every)}", [s.name for s in every]),
        (f"{len(close)} within {CLOSE:g} points", close),
    ):
        for column, title in (("same", "same top p"), ("kl", "mean KLD")):
            told = correlations(table, names, column)
            cells = [f"{value:.2f} [{low:.2f}, {high:.2f}]" for value, low, high in told.values()]
            lines.append(f"| {what} | {title} | {' | '.join(cells)} |")
    for loss in LOSSES:
        lines += drawn(table, loss)
    lines += ["", "| setting | same top p | mean KLD | accuracy |", "| --- | --- | --- | --- |"]
    for s in sorted(every, key=lambda s: -s.agreement):
        lines.append(f"| {s.name} | {100 * s.agreement:.2f} % | {s.kl:.4f} | {table.accuracy[s.name]:.2f} |")
    return "\n".join(lines) + "\n"


@command_line
def main(argv: list[str] | None = None) -> int:
    """Exit code: 0 done, 2 refused, 130 interrupted."""
    parser = argparse.ArgumentParser(prog="python -m eval.advise_check", description=__doc__.split("\n")[0])
    parser.add_argument("--model", default="checkpoints/testbed")
    parser.add_argument("--data", default="testbed_validation", help="a question set of the testbed by name")
    parser.add_argument("--results", type=Path, default=ROOT / "results" / "testbed.jsonl", help="rows of the test set")
    parser.add_argument(
        "--folder", type=Path, default=ROOT / "results" / "runs" / "advise", help="rows while measuring"
    )
    parser.add_argument("--out", type=Path, default=OUT, help="rows; the page stands beside them")
    parser.add_argument("--questions", type=int, default=1000, help="the first N of the set (default: 1000)")
    parser.add_argument("--minutes", type=float, default=math.inf, help="read no further after these")
    parser.add_argument("--report", action="store_true", help="measure nothing")
    args = parser.parse_args(argv)
    if not args.report:
        measure(args.model, args.data, args.questions, args.folder, args.out, args.minutes)
    table = Table(record.load([args.out]), rows.load(args.results, strict=True)[0])
    write_whole(args.out.with_suffix(".md"), page(table))
    print(page(table))
    return 0


if __name__ == "__main__":
    sys.exit(main())
