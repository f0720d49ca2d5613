"""The figure of served models: medians and spreads by hand, the newest of equal rows, the same files twice."""

from figures import served


def row(method, tokens, clients, turn, speed, date="2026-11-27T10:00:00"):
    return {
        "kind": "served",
        "date": date,
        "model": "wide",
        "hidden": 64,
        "layers": 4,
        "dtype": "float32",
        "served": "vllm 0.32.0",
        "device": "cpu",
        "server_threads": 1,
        "method": method,
        "tokens": tokens,
        "concurrency": clients,
        "round": turn,
        "requests_per_s": speed,
        "ttft_ms": {"p50": 100 / speed, "p95": 200 / speed},
    }


ROWS = [row("none", None, c, t, 1.0 + t) for c in (1, 4) for t in range(3)]
ROWS += [row("visionzip", 64, c, t, 4.0 * (1 + t)) for c in (1, 4) for t in range(3)]


def test_curves_are_medians_and_newer_rows_replace_older_ones():
    (own,) = served.places([*ROWS, row("none", None, 1, 0, 9.0, "2026-11-28T10:00:00")]).values()
    plain = [r for r in own if r["method"] == "none"]
    assert served.curve(plain, "requests_per_s") == [(1, 3.0, 2.0, 9.0), (4, 2.0, 1.0, 3.0)]
    assert served.curve(plain, "ttft_ms")[1] == (4, 50.0, 100 / 3, 100.0)


def test_drawn_twice_it_is_the_same(tmp_path):
    for name in ("a", "b"):
        served.draw([*ROWS, *({**r, "device": "card"} for r in ROWS)], "served", tmp_path / name)
    files = [sorted((tmp_path / name).iterdir()) for name in ("a", "b")]
    assert [f.read_bytes() for f in files[0]] == [f.read_bytes() for f in files[1]] and len(files[0]) == 3
    assert "visionzip 64" in (tmp_path / "a" / "served.txt").read_text()
