"""The leaderboard: every row that may be shown, none that may not, and a page that works in a browser."""

import json
import re
import shutil
import subprocess

import pytest

from eval.results import rows
from figures import leaderboard
from tests.support.results_rows import row, write

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")


def numbered(*made: dict) -> list[dict]:
    """The rows with runs of their own."""
    return [rows.seal({**r, "run": f"{i:012d}"}) for i, r in enumerate(made)]


GOOD = numbered(
    row("gqa", 62.0),
    row("gqa", 60.0, "visiondrop", 64),  # interval 59 to 61
    row("gqa", 61.5, "vispruner", 64),  # 60.5 to 62.5: overlaps with the one above
    row("gqa", 50.0, "fastv", 64),  # below both
    row("gqa", 61.0, "visionzip", 128),
    row("pope", 85.0, "visiondrop", 64),
    row("testbed", 90.0, "visiondrop", 64, protocol="offline", model="testbed"),
)


def page_of(tmp_path, *made) -> str:
    out = tmp_path / "page.html"
    assert leaderboard.main(["--results", str(write(tmp_path, *made)), "--out", str(out)]) == 0
    return out.read_text()


def runs_in(text: str) -> list[str]:
    return re.findall(r'<tr class="run[^>]*data-run="(\w+)"', text)


def cells_of(text: str, run: str) -> dict[str, str]:
    (line,) = re.findall(rf'<tr class="run[^>]*data-run="{run}"[^>]*>(.*?)</tr>', text)
    return dict(re.findall(r'<td data-head="([^"]+)"[^>]*>([^<]*)</td>', line))


def test_every_row_is_there_and_testbeds_stand_alone(tmp_path):
    text = page_of(tmp_path, *GOOD)
    assert sorted(runs_in(text)) == [r["run"] for r in GOOD]
    models, testbeds = text.split("<h2>")[1:]
    assert runs_in(testbeds) == [GOOD[-1]["run"]] and "no evidence" in testbeds
    assert "http" not in re.sub(r"https?://[^\"<]*</dd>", "", text).replace("http-equiv", "")  # nothing is loaded


def test_overlapping_intervals_share_a_rank(tmp_path):
    text = page_of(tmp_path, *GOOD)
    told = [cells_of(text, r["run"]) for r in GOOD]
    assert [t["rank"] for t in told] == ["", "1", "1", "3", "1", "1", "1"]
    assert told[1]["of unpruned"] == f"{100 * 60 / 62:.1f} %" and told[4]["budget"] == "128"


def test_the_same_rows_give_the_same_bytes(tmp_path):
    (tmp_path / "a").mkdir(), (tmp_path / "b").mkdir()
    assert page_of(tmp_path / "a", *GOOD) == page_of(tmp_path / "b", *GOOD)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"partial": True, "limit": 10, "n": 10}, "a partial run: 10 of 12578"),
        ({"dirty": True}, "uncommitted changes"),
        ({"score": None, "interval": None, "server": "somebody"}, "not scored here (by somebody)"),
        ({"missing": ["exact_match"]}, "the data held no question"),
        ({"changed": 0.0}, "did it prune?"),
    ],
)
def test_rows_that_are_refused_are_named_by_their_line(tmp_path, capsys, changes, words):
    bad = rows.seal({**row("gqa", 60.0, "visiondrop", 64), **changes, "run": "bad000000000"})
    file = write(tmp_path, GOOD[0], bad, GOOD[1])
    assert leaderboard.main(["--check", str(file)]) == 2
    shown = capsys.readouterr()
    assert f"{file}, line 2: " in shown.err and words in shown.err and "2 of 3 rows" in shown.out
    (tmp_path / "page").mkdir()
    assert "bad000000000" not in runs_in(page_of(tmp_path / "page", GOOD[0], bad, GOOD[1]))


def test_damage_and_duplicates_are_named_by_their_line(tmp_path, capsys):
    file = write(tmp_path, *GOOD[:3])
    lines = file.read_text().splitlines()
    better = json.loads(lines[1]) | {"score": 99.0}
    file.write_text("\n".join([lines[0], json.dumps(better), lines[2], lines[2]]) + "\n")
    assert leaderboard.main(["--check", str(file)]) == 2
    told = capsys.readouterr().err
    assert f"{file}, line 2: checksum does not fit" in told
    assert f"{file}, line 4: a duplicate" in told
    assert leaderboard.main(["--check", str(write(tmp_path / "whole", *GOOD))]) == 0


def browsed(page, view: str, *more: str) -> str:
    command = [CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", "--virtual-time-budget=2000", *more]
    done = subprocess.run([*command, f"{page.as_uri()}#{view}"], capture_output=True, text=True, timeout=120)
    return done.stdout


@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on this machine (apt-get install chromium)")
def test_the_page_sorts_filters_and_opens_in_a_browser(tmp_path):
    page_of(tmp_path, *GOOD)
    page = tmp_path / "page.html"
    scores = {r["run"]: r["score"] for r in GOOD}
    for way, descending in (("sort=score", True), ("sort=score&order=ascending", False)):
        order = [scores[run] for run in runs_in(browsed(page, way, "--dump-dom").split("<h2>")[1])]
        assert order == sorted(order, reverse=descending) and len(order) == 6
    for view, wanted in (
        ("benchmark=pope", {5}),
        ("budget=64&words=visiondrop", {1, 5, 6}),
        ("group=paper", {0, 1, 2, 3, 4, 5}),
        ("words=nobody", set()),
    ):
        text = browsed(page, view, "--dump-dom")
        shown = {
            run for tag, run in re.findall(r'(<tr class="run[^>]*data-run="(\w+)"[^>]*>)', text) if "hidden" not in tag
        }
        assert shown == {GOOD[i]["run"] for i in wanted}, view
    opened = browsed(page, f"open={GOOD[1]['run']}", "--dump-dom")
    (proof,) = re.findall(r'<tr class="proof">(.*?)</tr>', opened)
    assert GOOD[1]["checksum"] in proof and GOOD[1]["commit"] in proof


@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on this machine (apt-get install chromium)")
def test_nothing_is_wider_than_a_phone(tmp_path):
    page_of(tmp_path, *GOOD)
    page = tmp_path / "page.html"
    told = "<script>document.title = document.documentElement.scrollWidth + ' ' + innerWidth</script></body>"
    page.write_text(page.read_text().replace("</body>", told))
    width, window = re.search(
        r"<title>(\d+) (\d+)</title>", browsed(page, "", "--window-size=500,900", "--dump-dom")
    ).groups()
    assert int(width) <= int(window) <= 640
