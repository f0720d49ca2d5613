"""Table 4: FLOPs from the plans beside the paper's, measurements from rows, nothing compared that cannot be."""

import json
import subprocess
from pathlib import Path
from types import SimpleNamespace

import pytest

from eval.files import ROOT
from figures import table4
from figures.data import measured
from figures.reproduce import timings


def measurement(**changes):
    """A made-up row of eval.efficiency's sweep."""
    spread = {"median": 10.0, "min": 9.0, "max": 12.0, "n": 5}
    base = {
        "schema": 1,
        "kind": "phases",
        "method": "none",
        "tokens": None,
        "units": 1,
        "batch": 1,
        "hidden": 1024,
        "layers": 8,
        "attention": "sdpa",
        "clock": "thread cpu time",
        "threads": 1,
        "dtype": "float32",
        "device": "made up",
        "ms": dict.fromkeys(("encode", "select", "prefill", "decode"), spread),
        "decode_tokens_per_s": 50.0,
        "memory_bytes": 5e8,
        "ledger": {"tflops": 2.0},
        "date": "2026-01-01T00:00:00+00:00",
        "commit": "0" * 40,
    }
    return base | changes


def write(folder, *rows):
    file = folder / "rows.jsonl"
    file.write_text("".join(json.dumps(r) + "\n" for r in rows))
    return file


def test_flops_beside_the_paper():
    table = table4.flops()
    assert table["ours"].round(3).tolist() == [9.064, 2.107, 46.244, 45.461, 7.173]
    assert table["paper"].tolist()[:3] == [9.06, 2.11, 46.25] and table["paper"].isna().tolist() == [False] * 3 + [
        True,
        False,
    ]
    assert (table["delta_percent"].abs()[:3] <= 0.2).all() and table["delta_percent"][4] == pytest.approx(
        -6.85, abs=0.01
    )
    assert table["lean"].round(3).tolist() == [8.774, 2.020, 43.037, 42.340, 6.855]
    text = table4.build(measured.load([]))[".md"]
    assert "48 newlines" in text and "fixed-2880" in text and "No measurements yet" in text


def test_measurements_are_shown_with_their_machine(tmp_path):
    fast = {
        phase: {"median": 4.0, "min": 3.0, "max": 5.0, "n": 5} for phase in ("encode", "select", "prefill", "decode")
    }
    pruned = measurement(method="visiondrop", tokens=64, ms=fast, ledger={"tflops": 1.0})
    file = write(tmp_path, measurement(), pruned)
    built = table4.build(measured.load([file]))
    assert "**made up**, small stand-in (width 1024, 8 layers)" in built[".md"]
    assert "another size" in built[".md"] and "2.50×" in built[".md"] and "4.00 (3.00 – 5.00)" in built[".md"]
    assert "125 %" in built[".md"]  # 2.5 times as fast with half of the FLOPs
    assert "0.500" in built[".md"] and built == table4.build(measured.load([file]))


def test_only_the_paper_card_at_its_size_is_comparable(tmp_path):
    seven = {"hidden": 4096, "layers": 32}
    other = table4.build(measured.load([write(tmp_path, measurement(**seven))]))[".md"]
    same = table4.build(measured.load([write(tmp_path, measurement(**seven, device="NVIDIA GeForce RTX 3090"))]))[".md"]
    assert "another card" in other and "Not comparable" not in same


def test_the_newest_of_equal_measurements_counts(tmp_path):
    late = measurement(date="2026-02-01T00:00:00+00:00", decode_tokens_per_s=70.0)
    table = measured.load([write(tmp_path, late, measurement())])
    assert table["decode_tokens_per_s"].tolist() == [70.0]


def test_machines_are_not_mixed(tmp_path):
    pruned = measurement(method="visiondrop", tokens=64, device="another")
    table = measured.load([write(tmp_path, measurement(), pruned)])
    assert table.set_index("device")["speedup"].isna().to_dict() == {"made up": False, "another": True}


def test_a_broken_measurement_leaves_no_file(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(measured, "FOLDER", tmp_path)

    def half(command, **_):
        file = Path(command[command.index("--out") + 1])
        file.write_text(file.read_text() + "second" if file.exists() else "first")
        return SimpleNamespace(returncode=0 if file.read_text() == "first" else 2)

    monkeypatch.setattr(timings.subprocess, "run", half)
    assert timings.measure("table4", "cpu", "small", False) == 2
    assert not list(tmp_path.glob("*.jsonl")) and "measurement failed" in capsys.readouterr().err


@pytest.mark.parametrize("what", ["table4", "methods"])
def test_settings_of_the_measurements_are_reachable(what):
    import visiondrop

    for arguments in timings.sweeps(what, False):
        given = dict(zip(arguments[::2], arguments[1::2], strict=True))
        for method in set(given["--methods"].split(",")) - {"none", "stock"}:
            for tokens in given["--tokens"].split(","):
                shape = visiondrop.plan("none").shape if given.get("--units", "1") == "1" else table4.NEXT
                visiondrop.plan(method, int(tokens), shape=shape)


def test_the_committed_table_follows_from_committed_rows():
    listed = subprocess.run(["git", "ls-files", "results"], cwd=ROOT, capture_output=True, text=True).stdout.split()
    rows = [ROOT / name for name in listed if name.startswith("results/efficiency/table4-") and name.endswith(".jsonl")]
    tables = [ROOT / name for name in listed if name.startswith("results/tables/table4")]
    if not tables:
        pytest.skip("no table 4 is committed, or this is no git checkout")
    made = table4.build(measured.load(rows))
    assert {f"table4{suffix}" for suffix in made} == {file.name for file in tables}
    for file in tables:
        assert made[file.name.removeprefix("table4")] == file.read_text(encoding="utf-8")
