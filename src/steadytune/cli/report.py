"""`steadytune report`."""

from pathlib import Path
from typing import Annotated

import typer

from steadytune.cli import options
from steadytune.cli.output import out, print_json


def report(
    folders: Annotated[
        list[Path],
        typer.Argument(
            help="Folder of a study, as `compare` or `study` wrote it; or folders of runs of `pretrain`.", metavar="DIR"
        ),
    ],
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", help="Page about runs of `pretrain`.", show_default="pretraining.html beside"),
    ] = None,
    publish: Annotated[bool, typer.Option("--publish", help="Leave out every text of the data; ids stay.")] = False,
    as_json: options.Json = False,
) -> int:
    """Make the report of a study again, or one about runs of `pretrain`: one page that opens in any browser.

    For a study it writes `DIR/report.html` (with --publish `DIR/published.html`) and `DIR/tables/`. Trains nothing.

    Example: `steadytune report runs/compare-sample`
    """
    from steadytune.records.pretraining import is_pretraining
    from steadytune.reports.document import write_report

    if len(folders) > 1 or is_pretraining(folders[0]):
        return _pretraining(folders, output, as_json)
    (folder,) = folders
    page = write_report(folder, publish=publish)
    if as_json:
        print_json({"report": str(page), "tables": str(page.parent / "tables")})
    else:
        out.print(f"report  {page}", markup=False, soft_wrap=True)
    return 0


def _pretraining(folders: list[Path], output: Path | None, as_json: bool) -> int:
    from steadytune.reports.pretraining import PAGE, write_pretraining_report

    page = write_pretraining_report(folders, output or folders[0].resolve().parent / PAGE)
    if as_json:
        print_json({"report": str(page)})
    else:
        out.print(f"report  {page}", markup=False, soft_wrap=True)
    return 0
