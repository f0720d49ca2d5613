"""The tables of docs/results.md: what stands between markers is replaced by the committed tables.

    python -m figures.reproduce.readme            # writes docs/results.md
    python -m figures.reproduce.readme --check    # exit code 2 when it would change

Markers are comments, `<!-- table1-testbed -->` … `<!-- end table1-testbed -->`, named like files in results/tables.
"""

import argparse
import re
import sys
from pathlib import Path

from eval.errors import EvaluationError
from eval.files import ROOT

MARK = re.compile(r"<!-- (table[\w-]+) -->\n.*?<!-- end \1 -->", re.DOTALL)


def filled(text: str, folder: Path) -> str:
    """The text with every marked table replaced.

    Raises:
        EvaluationError: a marked table is not there.
    """

    def table(found: re.Match) -> str:
        file = folder / f"{found[1]}.md"
        if not file.is_file():
            raise EvaluationError(f"the page asks for {found[1]}, and there is no {file}: make it with scripts/tables")
        title, _, rest = file.read_text(encoding="utf-8").partition("\n")
        return f"<!-- {found[1]} -->\n\n**{title.lstrip('# ')}**\n{rest}\n<!-- end {found[1]} -->"

    return MARK.sub(table, text)


def main(argv: list[str] | None = None) -> int:
    """Exit code: 0 done or unchanged, 2 refused or (with --check) changed."""
    parser = argparse.ArgumentParser(prog="python -m figures.reproduce.readme", description=__doc__.split("\n")[0])
    parser.add_argument("--check", action="store_true")
    parser.add_argument("--file", type=Path, default=ROOT / "docs" / "results.md")
    parser.add_argument("--tables", type=Path, default=ROOT / "results" / "tables")
    args = parser.parse_args(argv)
    try:
        text = args.file.read_text(encoding="utf-8")
        made = filled(text, args.tables)
    except (EvaluationError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    if args.check and made != text:
        print(
            f"error: the tables in {args.file} are not those of {args.tables}: run python -m figures.reproduce.readme",
            file=sys.stderr,
        )
        return 2
    if made != text:
        args.file.write_text(made, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
