"""The tables and figures by name.  A page is one file at the root of figures/; it registers itself, once:

    @page("figure2", Rows("figure2"))
    def draw(variant, lines, name, out): ...

    if __name__ == "__main__":
        sys.exit(draw.main())

Its function gets what its needs read (figures.data.needs), then the name of the files and the folder.  Command line,
runs and `scripts/reproduce.sh` follow from the needs.
"""

import argparse
import importlib
import inspect
import pkgutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from figures.data.choose import FIGURES
from figures.data.needs import Need
from visiondrop.errors import command_line

_PAGES: dict[str, "Page"] = {}


@dataclass(frozen=True)
class Page:
    """A table or figure.

    Attributes:
        name: on the command line and in file names.
        needs: what it is drawn from; the first one names the files.
        function: `(*inputs of the needs, name, folder)`; writes the files.
        folder: where they go.
    """

    name: str
    needs: tuple[Need, ...]
    function: Callable[..., None]
    folder: Path

    def __call__(self, *args: Any) -> None:
        """Draw from inputs at hand."""
        self.function(*args)

    def parser(self) -> argparse.ArgumentParser:
        """The page's command line: the options of its needs, and --out."""
        about = inspect.getdoc(inspect.getmodule(self.function)) or ""
        module = self.function.__globals__["__spec__"].name
        parser = argparse.ArgumentParser(prog=f"python -m {module}", description=about.split("\n")[0])
        self.add_arguments(parser)
        return parser

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        """The same options, on a parser that has others."""
        for need in self.needs:
            need.add_arguments(parser)
        parser.add_argument("--out", type=Path, default=self.folder)

    def run(self, args: argparse.Namespace) -> None:
        """Read what is needed and draw.

        Raises:
            EvaluationError: what is needed is not there.
        """
        inputs = [value for need in self.needs for value in need.inputs(self.name, args)]
        self.function(*inputs, self.needs[0].stem(self.name, args), args.out)

    def main(self, argv: list[str] | None = None) -> int:
        """Exit code: 0 done, 2 refused with one sentence."""
        return _main(self, argv)


@command_line
def _main(page: Page, argv: list[str] | None) -> int:
    page.run(page.parser().parse_args(argv))
    return 0


def page(name: str, *needs: Need, folder: Path = FIGURES) -> Callable[[Callable[..., None] | Page], Page]:
    """Decorator: make a function the page `name`.  Used twice on one function, it makes two pages."""

    def add(function: Callable[..., None] | Page) -> Page:
        plain = function.function if isinstance(function, Page) else function
        _PAGES[name] = Page(name, needs, plain, folder)
        return _PAGES[name]

    return add


def every() -> dict[str, Page]:
    """All pages by name: tables first, then the rest in alphabetical order."""
    for module in pkgutil.iter_modules([str(Path(__file__).parents[1])]):
        if not module.ispkg:
            importlib.import_module(f"figures.{module.name}")
    return {name: _PAGES[name] for name in sorted(_PAGES, key=lambda n: (not n.startswith("table"), n))}


def get(name: str) -> Page:
    """The page of this name."""
    return every()[name]
