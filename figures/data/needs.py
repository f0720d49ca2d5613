"""What a page is drawn from: rows, a capture, timings.  A need reads what is there; figures.reproduce makes it.

Every need has the same three methods: `add_arguments` (its options on the page's command line), `inputs` (what it
hands to the page's function) and `stem` (the name of the files that are written).
"""

import argparse
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from eval.efficiency import record
from eval.errors import EvaluationError
from figures.data import captures, cells, choose, measured


@dataclass(frozen=True)
class Need:
    """Something to draw from; `options` are the arguments of figures.reproduce.make that are handed on to the page."""

    options = ()

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        """Add the need's options to the page's command line."""

    def inputs(self, page: str, args: argparse.Namespace) -> tuple[Any, ...]:
        """What the page's function gets; refused with one sentence (EvaluationError) where it is not there."""
        raise NotImplementedError

    def stem(self, page: str, args: argparse.Namespace) -> str:
        """File name without suffix."""
        return page


@dataclass(frozen=True)
class Rows(Need):
    """Cells of an entry of configs/tables.yaml: the page gets (variant, cells in long form)."""

    table: str
    options = ("model", "protocol", "results")

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        """--model, --protocol, --results."""
        choose.add_arguments(parser)

    def inputs(self, page: str, args: argparse.Namespace) -> tuple[Any, ...]:
        """(variant, long form); refused where there is no unpruned or no pruned row."""
        variant, model, table = choose.with_rows(self.table, args)
        lines = cells.long_table(variant, model, table)
        pruned = lines["method"] != "none"
        if lines[pruned]["ours"].isna().all() or lines[~pruned]["ours"].isna().all():
            reasons = ", ".join(sorted({n for n in lines["note"] if n}))
            raise EvaluationError(
                f"there are no rows of {model} for this figure, unpruned and pruned ({reasons}): "
                f"run bash scripts/figures/{page}.sh"
            )
        return variant, lines

    def stem(self, page: str, args: argparse.Namespace) -> str:
        """figure2-testbed, accuracy-tokens-paper-offline."""
        return choose.stem(choose.chosen(self.table, args)[0]).replace(self.table, page)


@dataclass(frozen=True)
class Table(Rows):
    """The rows themselves: the page gets (variant, model, all rows), and shows empty cells with their reason."""

    def inputs(self, page: str, args: argparse.Namespace) -> tuple[Any, ...]:
        """(variant, model, rows)."""
        return choose.with_rows(self.table, args)


@dataclass(frozen=True)
class Capture(Need):
    """Scores or kept patches of a model: the page gets (arrays, about).

    Attributes:
        take: makes them: `(probe, scenes) -> dict` of arrays, with `about`, a dictionary, among them.
    """

    take: Callable[..., dict]
    options = ("model", "data")

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        """--model, --data."""
        parser.add_argument("--model", help="as given to figures.reproduce.capture; default: the testbed")
        parser.add_argument("--data", type=Path, metavar="FILE", help="capture; default: results/figures/…npz")

    def _file(self, page: str, args: argparse.Namespace) -> Path:
        return args.data or captures.file_of(page, args.model)

    def inputs(self, page: str, args: argparse.Namespace) -> tuple[Any, ...]:
        """(arrays, about)."""
        return captures.read(self._file(page, args))

    def stem(self, page: str, args: argparse.Namespace) -> str:
        """The capture's name."""
        return self._file(page, args).stem


@dataclass(frozen=True)
class Timings(Need):
    """Measurements of eval.efficiency: the page gets one table of them.

    Attributes:
        what: "table4" or "methods" (figures.reproduce.timings).
    """

    what: str

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        """--rows."""
        parser.add_argument(
            "--rows", type=Path, nargs="+", help=f"measurements; default: results/efficiency/{self.what}-*.jsonl"
        )

    def inputs(self, page: str, args: argparse.Namespace) -> tuple[Any, ...]:
        """(timings in long form,)."""
        return (measured.load(args.rows or measured.files(self.what)),)


@dataclass(frozen=True)
class Served(Need):
    """Measurements of eval.serving: the page gets their rows."""

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        """--rows."""
        parser.add_argument("--rows", type=Path, nargs="+", help="measurements; default: results/serving/*.jsonl")

    def inputs(self, page: str, args: argparse.Namespace) -> tuple[Any, ...]:
        """(rows,); refused where there are none."""
        files = args.rows or sorted((choose.RESULTS / "serving").glob("*.jsonl"))
        rows = [row for row in record.load(files) if row["kind"] == "served"]
        if not rows:
            raise EvaluationError("there are no rows of a served model: run bash scripts/serve/benchmark.sh")
        return (rows,)
