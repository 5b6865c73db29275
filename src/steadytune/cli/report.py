"""`steadytune report`."""

from pathlib import Path
from typing import Annotated

import typer

from steadytune.cli import options
from steadytune.cli.output import out, print_json


def report(
    folder: Annotated[Path, typer.Argument(help="Folder of a study, as `compare` or `study` wrote it.", metavar="DIR")],
    publish: Annotated[bool, typer.Option("--publish", help="Leave out every text of the data; ids stay.")] = False,
    as_json: options.Json = False,
) -> int:
    """Make the report of a study again: one page that opens in any browser, and its tables.

    Writes `DIR/report.html` (with --publish `DIR/published.html`) and `DIR/tables/`. Trains nothing.

    Example: `steadytune report runs/compare-sample`
    """
    from steadytune.reports.document import write_report

    page = write_report(folder, publish=publish)
    if as_json:
        print_json({"report": str(page), "tables": str(page.parent / "tables")})
    else:
        out.print(f"report  {page}", markup=False, soft_wrap=True)
    return 0
