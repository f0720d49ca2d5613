"""No comment sends its reader to a page that is not in the repository."""

import re
import subprocess
from pathlib import Path

import pytest

from visiondrop.methods.registry import options_of

ROOT = Path(__file__).parents[1]
SUFFIXES = {".py", ".yaml", ".yml", ".sh", ".toml", ".in", ".cfg"}
# A page followed by a place in it ("x.md §2", "`x.md` A2", "x.md section 3"), or a page with a folder before it.
PLACE = re.compile(r"([\w./-]+\.md)`?,?\s*(?:§|section\b|[A-Z]\d)")
PATH = re.compile(
    r"(?<![\w/.{])((?:docs|results|checkpoints|configs|testbed|eval|figures|llava|visiondrop|tests)/[\w./-]*\.md)\b"
)
HEADING = re.compile(r"^#+ ", re.MULTILINE)


def sources() -> list[Path]:
    """The files of the repository that hold comments, this one left out."""
    try:
        names = subprocess.run(
            ["git", "ls-files", "--cached", "--others", "--exclude-standard"],
            cwd=ROOT,
            check=True,
            capture_output=True,
            text=True,
        ).stdout.splitlines()
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("needs git and a checkout to know which files belong to the repository")
    files = [ROOT / name for name in names if Path(name).suffix in SUFFIXES]
    return [file for file in files if file.is_file() and file != Path(__file__)]


def cited(text: str) -> set[str]:
    """Pages that `text` sends its reader to."""
    return {match for pattern in (PLACE, PATH) for match in pattern.findall(text)}


def test_every_cited_page_is_there():
    absent = [
        f"{file.relative_to(ROOT)}: {page}"
        for file in sources()
        for page in sorted(cited(file.read_text(encoding="utf-8")))
        if not (ROOT / page).is_file() and not (file.parent / page).is_file()
    ]
    assert not absent


def test_the_citations_that_were_there_would_be_found():
    for comment in (
        "(`sparsevlm.md` §2-6)",
        "performance.md §1",
        "for the same weights: field.md A2)",
        "a.md section 4",
    ):
        (page,) = cited(comment)
        assert page.endswith(".md") and not (ROOT / page).is_file()
    assert cited("see docs/methods/absent.md.") == {"docs/methods/absent.md"}
    assert not cited("out = {'.md': text}; path / 'README.md'")


@pytest.mark.parametrize("method", sorted(path.stem for path in (ROOT / "configs" / "methods").glob("*.yaml")))
def test_every_method_has_a_page_that_names_its_options(method):
    page = ROOT / "docs" / "methods" / f"{method}.md"
    text = page.read_text(encoding="utf-8")
    assert 30 <= len(text.splitlines()) <= 80 and text.startswith("# ") and len(HEADING.findall(text)) >= 4
    for option in options_of(method):
        assert f"`{option}`" in text, f"{page.name} does not explain {option}"
