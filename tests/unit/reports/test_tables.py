"""Tables say the same in the page and in their three kinds of file, and no cell can break out of its own."""

import csv
import io

import pytest

from steadytune.reports.study import Place
from steadytune.reports.tables import Column, Sheet, Value, columns, comma_separated, joined, latex, markdown

NAN = float("nan")


def of(*cells: Value, heads: list[Column] | None = None) -> Sheet:
    return Sheet("t", "A title", heads or columns(*(f"c{index}" for index in range(len(cells)))), [cells])


@pytest.mark.parametrize(
    ("column", "value", "shown"),
    [
        (Column("c"), 1.25, "1.2"),
        (Column("c", 3), 1.25, "1.250"),
        (Column("c", signed=True), 1.25, "+1.2"),
        (Column("c", signed=True), -0.04, "+0.0"),
        (Column("c"), -0.04, "0.0"),
        (Column("c"), 3, "3"),
        (Column("c"), (1.0, -2.0), "1.0 to -2.0"),
        (Column("c"), None, "–"),
        (Column("c"), NAN, "–"),
        (Column("c", 4, probability=True), 0.00001, "< 0.0001"),
        (Column("c", 4, probability=True), 0.04, "0.0400"),
    ],
)
def test_a_cell_is_shown_as_its_column_says(column: Column, value: Value, shown: str) -> None:
    assert column.shown(value) == shown


def test_markdown_has_a_head_a_rule_and_a_line_per_row() -> None:
    sheet = Sheet("t", "A title", columns("name", "value"), [["a", 1.0], ["b", None]])
    assert markdown(sheet) == "**A title**\n\n| name | value |\n| --- | ---: |\n| a | 1.0 |\n| b | – |\n"


def test_markdown_shows_marks_as_text() -> None:
    assert "| a\\|b &lt;i&gt; \\*c\\* d |" in markdown(of("a|b <i> *c*\nd"))


def test_latex_is_a_tabular_with_rules() -> None:
    sheet = Sheet("t", "A title", columns("name", "value"), [["a", -1.0]])
    lines = latex(sheet).splitlines()
    assert lines[1:] == [
        r"\begin{tabular}{lr}",
        r"\toprule",
        r"name & value \\",
        r"\midrule",
        r"{}a & $-$1.0 \\",
        r"\bottomrule",
        r"\end{tabular}",
    ]


def test_latex_shows_every_special_mark_as_text() -> None:
    expected = (
        r"\textbackslash{}input\{x\} \& 5\% \$ \#1 a\_b \textasciicircum{} \textasciitilde{} \textless{}i\textgreater{}"
    )
    assert expected in latex(of(r"\input{x} & 5% $ #1 a_b ^ ~ <i>"))


def test_csv_holds_more_digits_than_the_page_and_both_ends_of_an_interval() -> None:
    sheet = of(1.23456, (1.0, 2.5), None, heads=columns("a", "b", "c"))
    assert comma_separated(sheet) == 'a,"b, low","b, high",c\n1.23456,1,2.5,\n'


def test_an_interval_that_is_not_known_keeps_its_two_columns() -> None:
    sheet = Sheet("t", "A title", columns("a", "b"), [[(1.0, 2.0), "x"], [None, "y"]])
    assert comma_separated(sheet).splitlines()[2] == ",,y"


def test_csv_quotes_what_holds_a_comma_a_quote_or_a_line_break() -> None:
    (_, row) = csv.reader(io.StringIO(comma_separated(of('a,"b"\nc', "d"))))
    assert row == ['a,"b"\nc', "d"]


@pytest.mark.parametrize("text", ["=1+1", "+1", "-1", "@x"])
def test_csv_gives_nothing_that_a_spreadsheet_computes(text: str) -> None:
    assert comma_separated(of(text)).splitlines()[1] == f"'{text}"


def test_sheets_of_one_name_become_one_file_with_their_places() -> None:
    made = [
        Sheet("t", "A title", columns("x"), [[index]], Place(task, "all", "steps"))
        for index, task in enumerate(("one", "two"))
    ]
    sheet = joined(made)["t"]
    assert [column.title for column in sheet.columns] == ["task", "protocol", "budget", "x"]
    assert sheet.rows == [["one", "all", "steps", 0], ["two", "all", "steps", 1]]


def test_a_sheet_for_the_page_alone_has_no_file() -> None:
    assert joined([Sheet("t", "A title", columns("x"), [["secret"]], filed=False)]) == {}


def test_a_column_that_sheets_head_differently_has_a_heading_for_all_in_the_file() -> None:
    sheets = [
        Sheet("t", "A title", [Column("recipe"), Column(title, joined="score")], [["a", 1.0]]) for title in ("f1", "r")
    ]
    assert [column.title for column in joined(sheets)["t"].columns] == ["recipe", "score"]
    assert [column.title for column in joined(sheets[:1])["t"].columns] == ["recipe", "f1"]
