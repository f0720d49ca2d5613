"""python -m eval.efficiency: rows, table, plots and refusals on a very small model."""

import json

import pytest
import torch

from eval.efficiency import __main__ as command
from eval.efficiency import models, overlap, plots, record, roofline
from eval.efficiency.memory import LiveBytes
from eval.efficiency.phases import Bench, Case
from eval.efficiency.timing import Candidate, interleave, ratio
from visiondrop.api import plan
from visiondrop.plans.flops import LLAVA_7B

SMALL = ["--size", "thin", "--tower", "tiny", "--rounds", "2", "--steps", "2"]


def test_sweep_writes_rows_and_plots(tmp_path, capsys):
    out = tmp_path / "rows.jsonl"
    assert (
        command.main(["sweep", *SMALL, "--methods", "none,stock,visiondrop", "--batch", "1,2", "--out", str(out)]) == 0
    )
    table = capsys.readouterr().out
    assert "visiondrop 64" in table and "tok/s" in table
    rows = record.load([out])
    assert [(r["method"], r["batch"]) for r in rows] == [
        (m, b) for b in (1, 2) for m in ("none", "stock", "visiondrop")
    ]
    for row in rows:
        assert set(record.NEEDED) <= set(row)
        assert set(row["ms"]) == {"encode", "select", "prefill", "decode"}
        assert row["ms"]["prefill"]["n"] == 2 and row["ms"]["prefill"]["median"] > 0
    none, stock, pruned = rows[:3]
    assert not stock["realised"] and none["realised"]["total"] == {"time_ratio": 1, "flop_ratio": 1, "share": 1}
    for name, told in pruned["realised"].items():
        assert told["share"] == told["time_ratio"] / told["flop_ratio"] and 1 < told["flop_ratio"] < 10, name
    assert pruned["realised"]["prefill"]["flop_ratio"] > pruned["realised"]["total"]["flop_ratio"]
    assert pruned["ledger"]["mean"] == 64 and none["ledger"]["mean"] == 576
    assert pruned["memory_bytes"] < none["memory_bytes"] and pruned["max_batch"] > none["max_batch"]
    pytest.importorskip("matplotlib", reason="plots need matplotlib")
    assert command.main(["plot", str(out), "--folder", str(tmp_path)]) == 0
    assert (tmp_path / "latency.png").stat().st_size and (tmp_path / "throughput.png").stat().st_size


def test_lines_of_a_plot_hold_what_compares(tmp_path, monkeypatch):
    """Crops, attentions and towers have lines of their own; of equal rows the newest counts; machines do not mix."""
    pytest.importorskip("matplotlib", reason="plots need matplotlib")

    def row(tokens=64, units=1, attention="sdpa", tower="clip-l", ms=5.0, **more):
        ledger, spread = {"mean": tokens or 576.0 * units}, {"median": ms, "min": ms - 1, "max": ms + 1, "n": 3}
        row = {"schema": 1, "kind": "phases", "method": "visiondrop" if tokens else "none", "tokens": tokens}
        row |= {
            "units": units,
            "attention": attention,
            "tower": tower,
            "batch": 1,
            "date": "2026-01-01",
            "ledger": ledger,
        }
        row |= {"ms": {"prefill": spread}, "roofline_ms": {"prefill": ms / 2}, "images_per_s": 1.0, "clock": "events"}
        place = {"device": "card", "hidden": 8, "layers": 2, "dtype": "bfloat16", "threads": 1, "text_tokens": 63}
        return row | place | more

    rows = [row(None), row(), row(32), row(320, 5), row(attention="flash_attention_2"), row(ms=9.0, date="2026-01-02")]
    rows += [row(batch=2), row(batch=2, tower="tiny", ms=70.0), row(tower="tiny", ms=70.0)]
    drawn = {}
    monkeypatch.setattr(plots, "_save", lambda figure, axes, folder, name, title: drawn.setdefault(name, axes))
    plots.draw(rows, tmp_path)
    containers = {c.get_label(): c.lines[0].get_xydata().tolist() for c in drawn["latency"].containers}
    assert set(containers) == {"none", "visiondrop", "visiondrop, 5 crops", "visiondrop, flash_attention_2"}
    assert containers["visiondrop"] == [[32, 5], [64, 9]] and containers["none"] == [[576, 5]]
    dashed = [line.get_xydata().tolist() for line in drawn["latency"].lines if line.get_linestyle() == "--"]
    assert dashed == [[[32, 2.5], [64, 2.5], [64, 4.5], [576, 2.5]], [[320, 2.5]]]
    labels = {line.get_label() for line in drawn["throughput"].lines}
    assert labels == {"visiondrop, 64 tokens", "visiondrop, 64 tokens, narrow tower"}  # the others have one batch only
    with pytest.raises(command.EvaluationError, match="2 machines or models.*another card"):
        plots.draw([row(), row(device="another card")], tmp_path)


def test_score_and_graphs_write_rows(tmp_path, monkeypatch):
    out = tmp_path / "rows.jsonl"
    monkeypatch.setattr(command.score, "COUNTS", (96,))
    assert command.main(["score", "--heads", "2", "--head-size", "16", "--rounds", "1", "--out", str(out)]) == 0
    assert command.main(["graphs", *SMALL, "--out", str(out)]) == 0
    score, none, pruned = record.load([out])
    assert score["ms"]["chunked"]["median"] > 0 and score["memory_bytes"]["chunked"] > 0
    assert (none["method"], pruned["method"]) == ("none", "visiondrop")
    assert {"eager", "static"} == set(pruned["decode"]) == set(pruned["first_token"])


@pytest.mark.parametrize("uneven", [True, False])
def test_prompts_of_unequal_length_take_a_mask_everywhere(uneven):
    model, masked = models.build("thin"), []
    bench = Bench(model, None, 1, 2, 1, 63, uneven=uneven)
    for layer in model.model.layers:
        layer.register_forward_pre_hook(
            lambda _, args, kw: masked.append(kw["attention_mask"] is not None), with_kwargs=True
        )
    pruned = Case("visiondrop", 64)
    for candidate in (bench.prefill(Case("none")), bench.prefill(pruned), bench.free(pruned)):
        masked.clear()
        if candidate.prepare is not None:
            candidate.prepare()
        candidate.run()
        assert masked == [uneven] * 4


def test_the_judged_ratio_with_a_mask(tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(models.SIZES, "small", models.SIZES["thin"])
    out = tmp_path / "rows.jsonl"
    assert command.main(["goals", "--only", "masked", "--rounds", "2", "--out", str(out)]) == 0
    (row,) = record.load([out])
    assert row["prompts"] == 2 and row["ratio"]["n"] == 2 and row["flop_ratio"]["whole"] > row["flop_ratio"]["causal"]
    assert "unequal length" in capsys.readouterr().out


def test_several_crops(tmp_path):
    out = tmp_path / "rows.jsonl"
    arguments = ["sweep", *SMALL, "--methods", "none,visiondrop", "--tokens", "320", "--units", "5", "--out", str(out)]
    assert command.main(arguments) == 0
    none, pruned = record.load([out])
    assert none["ledger"]["mean"] == 2880 and pruned["ledger"]["mean"] == 320


@pytest.mark.parametrize(
    "arguments, words",
    [
        (["sweep", *SMALL, "--tokens", "many"], "whole numbers"),
        (["sweep", *SMALL, "--methods", "visiondrp"], "visiondrop"),
        (["plot", "missing.jsonl"], "cannot read"),
    ],
)
def test_refusals(tmp_path, capsys, arguments, words):
    if arguments[0] == "sweep":
        arguments = [*arguments, "--out", str(tmp_path / "rows.jsonl")]
    assert command.main(arguments) == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert error.startswith("error: ") and words in error


def test_no_card_is_told(tmp_path, capsys):
    if torch.cuda.is_available():
        pytest.skip("a card is here")
    assert command.main(["sweep", *SMALL, "--device", "cuda", "--out", str(tmp_path / "x.jsonl")]) == 2
    assert "no card" in capsys.readouterr().err


def test_rows_need_their_certificate(tmp_path):
    with pytest.raises(command.EvaluationError, match="lacks"):
        record.append(tmp_path / "x.jsonl", [{"kind": "phases"}])
    (tmp_path / "bad.jsonl").write_text(json.dumps({"schema": 0}) + "\n")
    with pytest.raises(command.EvaluationError, match="line 1"):
        record.load([tmp_path / "bad.jsonl"])


def test_live_bytes_counts_what_is_held():
    keep = torch.ones(10)
    with LiveBytes([keep]) as live:
        a = torch.zeros(1000)
        keep.view(5, 2)
        b = a + 1
        del a
        c = b * 2
        del b, c
    assert live.peak == 8000 and live.now == 0 and live.largest == 1000


def test_interleaving_alternates():
    order = []
    candidates = {name: Candidate(lambda name=name: order.append(name)) for name in "ab"}
    times = interleave(candidates, 3, torch.device("cpu"))
    assert "".join(order) == "abbaabba" and [len(v) for v in times.values()] == [3, 3]
    assert ratio([4.0, 2.0, 9.0], [2.0, 2.0, 3.0]) == {"median": 2.0, "min": 1.0, "max": 3.0, "n": 3}


def test_roofline_of_the_paper_sizes():
    """An H200's rated 790 TFLOP/s and 4.8 TB/s at batch 1 give 11.2 and 3.24 ms for tower and decoder, 576 -> 64."""
    rates = roofline.Rates(790e12, 4.8e12)
    ms = []
    for made in (plan("none"), plan("visiondrop", 64)):
        encode = roofline.encode_ms(made, LLAVA_7B, rates, 1)
        ms.append(encode + roofline.prefill_ms(made, LLAVA_7B, rates, 1, 63, 2))
    assert ms == pytest.approx([11.2, 3.24], rel=0.02)


def test_overlap_is_one_against_itself(tmp_path, monkeypatch, capsys):
    """With the same dtype twice every choice survives; with another it is measured, not assumed."""
    out = tmp_path / "rows.jsonl"
    arguments = ["overlap", "--methods", "visiondrop,fastv", "--limit", "2", "--out", str(out)]
    assert command.main(arguments) == 0
    load = overlap.load
    monkeypatch.setattr(overlap, "load", lambda path, dtype: load(path, torch.float32))
    assert command.main(arguments) == 0
    rows = record.load([out])
    assert [r["method"] for r in rows] == ["visiondrop", "fastv"] * 2 and len(rows[0]["overlap"]) == 4
    assert all(set(r["overlap"].values()) == {1.0} and r["same_answers"] == 1 for r in rows[2:])
    assert all(0.5 < share <= 1 for r in rows[:2] for share in r["overlap"].values())
    assert "kept: encoder" in capsys.readouterr().out
