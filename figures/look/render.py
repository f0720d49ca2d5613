"""Long-form cells as Markdown, LaTeX and CSV.

A table of the paper's models has three lines per entry: paper, ours (with its 95 % interval), delta.  The stand-in has
one line per entry.  In each budget the best of our values is bold, the second underlined.  Every empty cell of ours is
a dash with a footnote.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from eval.errors import EvaluationError

DASH = "—"


@dataclass(frozen=True)
class Style:
    """How one output language marks things up."""

    bold: Callable[[str], str]
    second: Callable[[str], str]
    note: Callable[[str], str]
    escape: Callable[[str], str]


MARKDOWN = Style(
    lambda s: f"**{s}**", lambda s: f"<u>{s}</u>", lambda s: f"<sup>{s}</sup>", lambda s: s.replace("|", "\\|")
)
LATEX = Style(
    lambda s: f"\\textbf{{{s}}}",
    lambda s: f"\\underline{{{s}}}",
    lambda s: f"\\textsuperscript{{{s}}}",
    lambda s: s.replace("\\", "").replace("&", "\\&").replace("%", "\\%").replace("_", "\\_").replace("—", "---"),
)


def number(value: float, digits: int = 2) -> str:
    """Fixed digits; thousands (MME) without decimals; a dash for nothing."""
    if pd.isna(value):
        return DASH
    return f"{value:.0f}" if abs(value) >= 1000 else f"{value:.{digits}f}"


def signed(value: float) -> str:
    """A difference with its sign."""
    return DASH if pd.isna(value) else f"{value:+.0f}" if abs(value) >= 100 else f"{value:+.2f}"


class Notes:
    """Footnotes in order of appearance; equal reasons share a letter."""

    def __init__(self):
        self.reasons: list[str] = []

    def mark(self, reason: str) -> str:
        """The letter of a reason: a, b, …, z, aa, …"""
        if reason not in self.reasons:
            self.reasons.append(reason)
        index, letters = self.reasons.index(reason), ""
        while True:
            letters = chr(ord("a") + index % 26) + letters
            index = index // 26 - 1
            if index < 0:
                return letters

    def lines(self) -> list[tuple[str, str]]:
        """(letter, reason) of all notes."""
        return [(self.mark(r), r) for r in self.reasons]


def _ours(cell: pd.Series, style: Style, notes: Notes, digits: int) -> str:
    text = number(cell["ours"], digits)
    if text != DASH:
        text = {1: style.bold, 2: style.second}.get(cell["rank"], lambda s: s)(text)
        if pd.notna(cell["low"]):
            text += f" [{number(cell['low'], 1)}, {number(cell['high'], 1)}]"
    note = cell["note"] if isinstance(cell["note"], str) else ""
    return text + (style.note(notes.mark(note)) if note else "")


def body(
    cells: pd.DataFrame, extra: pd.DataFrame, style: Style, notes: Notes, digits: int = 2
) -> list[tuple[str, list[str]]]:
    """Lines of a table as (budget, texts), without mark-up of the language.

    Args:
        cells: long form with averages appended, columns in their order.
        extra: index entry; columns mean, flops and note, as text.
    """
    published = cells["paper"].notna().any()
    columns = list(dict.fromkeys(cells["column"]))
    out = []
    for entry, line in cells.groupby("entry", sort=True):
        by = line.set_index("column").loc[columns]
        first, tokens = by.iloc[0], str(by.iloc[0]["tokens"])
        tail = [extra.loc[entry, "mean"], extra.loc[entry, "flops"]]
        ours = [_ours(by.loc[c], style, notes, digits) for c in columns]
        remark = extra.loc[entry, "note"]
        label = style.escape(first["label"]) + (style.note(notes.mark(remark)) if remark else "")
        if not published:
            out.append((tokens, [label, *ours, *tail]))
            continue
        out.append((tokens, [label, "paper", *(number(by.loc[c, "paper"], digits) for c in columns), "", ""]))
        out.append((tokens, ["", "ours", *ours, *tail]))
        out.append((tokens, ["", "Δ", *(signed(by.loc[c, "delta"]) for c in columns), "", ""]))
    return out


def heads(cells: pd.DataFrame, style: Style, unit: str) -> list[str]:
    """Column headings, n included where the cells agree on it."""
    out = ["Method"] + ([""] if cells["paper"].notna().any() else [])
    for _, column in cells.groupby("column", sort=False):
        n = column["n"].dropna().unique()
        out.append(style.escape(column.iloc[0]["head"]) + (f" (n = {int(n[0])})" if len(n) == 1 else ""))
    return [*out, "mean tokens", unit]


def _tokens(count) -> str:
    """A budget as a heading."""
    return f"{count} token" + "s" * (str(count) != "1")


def markdown_table(head: list[str], lines: list[list[str]]) -> list[str]:
    """A table as Markdown lines; a line of one text is a separator row."""
    out = ["| " + " | ".join(head) + " |", "|" + " --- |" * len(head)]
    for texts in lines:
        out.append("| " + " | ".join(texts) + " |" + " |" * (len(head) - 1 if len(texts) == 1 else 0))
    return out


def booktabs(head: list[str], lines: list[list[str]]) -> list[str]:
    """A table as the lines of a LaTeX tabular; a line of one text is a heading over all columns, after a rule."""
    out = [
        "\\begin{tabular}{l" + "r" * (len(head) - 1) + "}",
        "\\toprule",
        " & ".join(head).replace("Δ", "$\\Delta$") + " \\\\",
        "\\midrule",
    ]
    for number, texts in enumerate(lines):
        if len(texts) == 1:
            out += ["\\midrule"] if number else []
            texts = [f"\\multicolumn{{{len(head)}}}{{l}}{{\\textit{{{texts[0]}}}}}"]
        out.append(" & ".join(t.replace("Δ", "$\\Delta$").replace(DASH, "---") for t in texts) + " \\\\")
    return [*out, "\\bottomrule", "\\end{tabular}"]


def footnotes(notes: Notes) -> list[str]:
    """Footnotes as Markdown lines, after an empty one."""
    return ["", *(f"<sup>{letter}</sup> {reason}  " for letter, reason in notes.lines())]


def _under_budgets(lines: list[tuple[str, list[str]]], heading: Callable[[str], str]) -> list[list[str]]:
    """Lines of all budgets, a separator before each: a table per budget would hide the comparison."""
    out: list[list[str]] = []
    budget = None
    for tokens, texts in lines:
        if tokens != budget:
            out.append([heading(_tokens(tokens))])
            budget = tokens
        out.append(texts)
    return out


def markdown(title: str, caption: list[str], head: list[str], lines: list[tuple[str, list[str]]], notes: Notes) -> str:
    """The whole file: title, caption, table, footnotes."""
    table = markdown_table(head, _under_budgets(lines, "*{}*".format))
    return "\n".join([f"# {title}", "", *caption, "", *table, *footnotes(notes)]).rstrip() + "\n"


def latex(title: str, caption: list[str], head: list[str], lines: list[tuple[str, list[str]]], notes: Notes) -> str:
    """A booktabs tabular, title, caption and notes as comments."""
    out = [f"% {title}", *booktabs(head, _under_budgets(lines, str))]
    out += [f"% {LATEX.escape(line)}" for line in caption]
    out += [f"% {letter}: {reason}" for letter, reason in notes.lines()]
    return "\n".join(out) + "\n"


def csv(cells: pd.DataFrame) -> str:
    """The long form; numbers with at most four decimals."""
    shown = cells.drop(columns=["entry"]).copy()
    for name in ("paper", "ours", "low", "high", "delta", "mean_tokens"):
        shown[name] = shown[name].astype(float).round(4)
    shown["n"], shown["rank"] = shown["n"].astype("Int64"), shown["rank"].astype("Int64")
    return shown.replace({np.nan: None}).to_csv(index=False, lineterminator="\n")


def save(files: dict[str, str], folder: Path, name: str) -> None:
    """Write the files and say where.

    Raises:
        EvaluationError: the folder cannot be written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for suffix, text in files.items():
            (folder / f"{name}{suffix}").write_text(text, encoding="utf-8")
    except OSError as error:
        raise EvaluationError(f"{folder} cannot be written: {error.strerror}; choose another --out") from None
    print(f"wrote {folder / name}.{{{','.join(sorted(s.strip('.') for s in files))}}}")
