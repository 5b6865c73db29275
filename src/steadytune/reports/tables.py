"""Tables of a report: shown in the page, and written as Markdown, LaTeX and CSV."""

import csv
import io
import math
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace

from steadytune.reports.study import Place

Value = str | int | float | tuple[float, float] | None
"""A cell: a word, a number, an interval, or nothing."""

NOTHING = "–"


@dataclass(frozen=True)
class Column:
    """A column.

    Attributes:
        title: its heading.
        digits: after the point, of numbers that are not whole.
        signed: numbers above 0 get a plus.
        probability: a p-value, which is never shown as 0.
        joined: its heading in a file where sheets head it differently.
    """

    title: str
    digits: int = 1
    signed: bool = False
    probability: bool = False
    joined: str = ""

    def shown(self, value: Value) -> str:
        """A cell as a reader sees it.

        Args:
            value: what is in it.
        """
        if value is None or (isinstance(value, float) and not math.isfinite(value)):
            return NOTHING
        if isinstance(value, tuple):
            return f"{self.shown(float(value[0]))} to {self.shown(float(value[1]))}"
        if self.probability and isinstance(value, float) and value < 1e-4:
            return "< 0.0001"
        if not isinstance(value, float):
            return str(value)
        rounded = round(value, self.digits) + 0.0  # no minus before a zero
        return f"{rounded:{'+' if self.signed else ''}.{self.digits}f}"


@dataclass(frozen=True)
class Sheet:
    """A table.

    Attributes:
        name: of its files; sheets of one name become one file.
        title: above it.
        columns: headings.
        rows: cells.
        place: where its numbers come from; its parts become columns of the file.
        filed: whether it is written to a file.
        shown: whether it stands in the page.
    """

    name: str
    title: str
    columns: Sequence[Column]
    rows: Sequence[Sequence[Value]]
    place: Place | None = None
    filed: bool = True
    shown: bool = True
    kind: str = field(default="sheet", init=False)

    @property
    def numbers(self) -> list[bool]:
        """For each column, whether all its cells are numbers."""
        return [
            bool(self.rows) and not any(isinstance(row[index], str) for row in self.rows)
            for index in range(len(self.columns))
        ]

    def body(self) -> list[list[tuple[str, bool]]]:
        """Each cell as shown, and whether it is a number."""
        return [
            [(column.shown(value), not isinstance(value, str)) for column, value in zip(self.columns, row, strict=True)]
            for row in self.rows
        ]


def columns(*titles: str, digits: int = 1) -> list[Column]:
    """Columns without anything special.

    Args:
        titles: their headings.
        digits: after the point.
    """
    return [Column(title, digits) for title in titles]


def joined(sheets: Iterable[Sheet]) -> dict[str, Sheet]:
    """One table per name: where one has a place, task, protocol and budget come first.

    Args:
        sheets: in order; those of one name have the same columns, and all or none of them have a place.
    """
    found: dict[str, Sheet] = {}
    for sheet in sheets:
        if not sheet.filed:
            continue
        place = () if sheet.place is None else tuple(sheet.place)
        heads = [*columns(*("task", "protocol", "budget")[: len(place)]), *sheet.columns]
        rows: list[Sequence[Value]] = [[*place, *row] for row in sheet.rows]
        if (before := found.get(sheet.name)) is not None:
            rows = [*before.rows, *rows]
            heads = [
                head if head.title == other.title else replace(head, title=head.joined)
                for head, other in zip(heads, before.columns, strict=True)
            ]
        found[sheet.name] = Sheet(sheet.name, sheet.title, heads, rows)
    return found


def markdown(sheet: Sheet) -> str:
    """A table in Markdown.

    Args:
        sheet: what.
    """
    heads = [column.title for column in sheet.columns]
    rule = ["---:" if number else "---" for number in sheet.numbers]
    body = [[_markdown_text(text) for text, _ in row] for row in sheet.body()]
    lines = [[_markdown_text(head) for head in heads], rule, *body]
    return f"**{_markdown_text(sheet.title)}**\n\n" + "".join(f"| {' | '.join(line)} |\n" for line in lines)


def latex(sheet: Sheet) -> str:
    """A table in LaTeX, for the package booktabs.

    Args:
        sheet: what.
    """
    kinds = "".join("r" if number else "l" for number in sheet.numbers)
    head = " & ".join(_latex_text(column.title) for column in sheet.columns)
    # "{}" keeps a row that begins with "[" or "*" from being read as an argument of the line before
    body = "".join("{}" + " & ".join(_latex_text(text) for text, _ in row) + r" \\" + "\n" for row in sheet.body())
    return (
        f"% {' '.join(sheet.title.split())}; \\usepackage{{booktabs}}\n\\begin{{tabular}}{{{kinds}}}\n\\toprule\n"
        f"{head} \\\\\n\\midrule\n{body}\\bottomrule\n\\end{{tabular}}\n"
    )


def comma_separated(sheet: Sheet) -> str:
    """A table as CSV: numbers with six digits, an interval in two columns.

    Words that a spreadsheet program would compute get an apostrophe.

    Args:
        sheet: what.
    """
    wide = [any(isinstance(row[index], tuple) for row in sheet.rows) for index in range(len(sheet.columns))]
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    heads = [
        [f"{column.title}, low", f"{column.title}, high"] if two else [column.title]
        for column, two in zip(sheet.columns, wide, strict=True)
    ]
    writer.writerow([_unspoken(part) for parts in heads for part in parts])
    for row in sheet.rows:
        cells = [_csv_cells(value, 2 if two else 1) for value, two in zip(row, wide, strict=True)]
        writer.writerow([part for parts in cells for part in parts])
    return out.getvalue()


def _csv_cells(value: Value, width: int) -> list[str]:
    if isinstance(value, tuple):
        return [f"{part:.6g}" for part in value]
    if isinstance(value, str):
        return [_unspoken(value), *[""] * (width - 1)]
    empty = value is None or (isinstance(value, float) and not math.isfinite(value))
    return ["" if empty else f"{value:.6g}" if isinstance(value, float) else str(value), *[""] * (width - 1)]


def _unspoken(text: str) -> str:
    return f"'{text}" if text[:1] in tuple("=+-@\t\r") else text


def _markdown_text(text: str) -> str:
    text = re.sub(r"([\\`*_\[\]|~#$])", r"\\\1", " ".join(text.split()))
    return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")


_LATEX = {
    "\\": r"\textbackslash{}",
    "{": r"\{",
    "}": r"\}",
    "^": r"\textasciicircum{}",
    "~": r"\textasciitilde{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
    '"': r"\textquotedbl{}",
    "–": "--",
    "−": "$-$",
    "±": r"$\pm$",
    "×": r"$\times$",
    "α": r"$\alpha$",
    **{mark: f"\\{mark}" for mark in "&%$#_"},
}


def _latex_text(text: str) -> str:
    escaped = "".join(_LATEX.get(mark, mark) for mark in " ".join(text.split()))
    return re.sub(r"(?<![\w-])-(?=\d)", "$-$", escaped)
