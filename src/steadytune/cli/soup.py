"""`steadytune soup`."""

import os
from pathlib import Path
from typing import Annotated

import typer

from steadytune.cli import options
from steadytune.cli.output import err, out, print_json, quiet_libraries, table

_EXAMPLE = """
Example: `steadytune soup runs/a runs/b runs/c --output runs/soup`
"""


def soup(
    runs: Annotated[list[str], typer.Argument(help="Folders of finished runs of `train`, two or more.")],
    output: Annotated[str, typer.Option("--output", "-o", help="Folder of the soup.")],
    greedy: Annotated[
        bool,
        typer.Option(
            "--greedy/--uniform",
            help="Best run first, each other one added if validation is at least as good with it; or the mean of all.",
        ),
    ] = True,
    as_json: options.Json = False,
) -> int:
    """Average the weights of finished runs into one model.

    They must have started from the same checkpoint with the same head: one seed, or one `--set run.head_seed=N`.
    """
    from steadytune.training.soup import make_soup

    quiet_libraries()
    folder = Path(output)
    record = make_soup(
        [Path(run) for run in runs],
        folder,
        rule="greedy" if greedy else "uniform",
        tell=lambda line: None if as_json else err.print(line, markup=False, soft_wrap=True),
    )
    if as_json:
        print_json({**record.model_dump(mode="json"), "output": output})
        return 0
    metric = record.metric
    rows = [
        [os.path.relpath(folder / one.path), one.dev_scores[metric], "", "yes" if one.kept else "no"]
        for one in record.ingredients
    ]
    rows[0][2] = record.best_scores.get("test", {}).get(metric, "")
    rows.append(["soup", record.scores["dev"][metric], record.scores["test"][metric], ""])
    out.print(table(["run", f"dev {metric}", f"test {metric}", "kept"], rows))
    out.print(f"record  {folder / 'soup.json'}", markup=False, soft_wrap=True)
    out.print(f"model   {folder / 'model'}", markup=False, soft_wrap=True)
    return 0


soup.__doc__ = f"{soup.__doc__}\n{_EXAMPLE}"
