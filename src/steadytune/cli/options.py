"""Options that several commands share."""

from typing import Annotated

import typer

Recipe = Annotated[
    str | None,
    typer.Option("--recipe", "-r", help="A bundled recipe, a YAML file, or a stack: `scl+hype`.", show_default="plain"),
]
Set = Annotated[
    list[str] | None,
    typer.Option("--set", help="`KEY.NAME=VALUE`; KEY is a method, `dropout` or `run`: `scl.temperature=0.1`."),
]
Config = Annotated[str | None, typer.Option("--config", help="A `run.yaml`; the command line overrides it.")]
Model = Annotated[
    str | None,
    typer.Option("--model", "-m", help="`bundled`, a local folder, or a name on the hub.", show_default="bundled"),
]
Seed = Annotated[int | None, typer.Option("--seed", help="Names every random stream.", show_default="0")]
TextColumn = Annotated[str | None, typer.Option("--text-column", help="Column of the text, for tables.")]
PairColumn = Annotated[str | None, typer.Option("--pair-column", help="Column of the second text, for tables.")]
LabelColumn = Annotated[str | None, typer.Option("--label-column", help="Column of the label, for tables.")]
Json = Annotated[bool, typer.Option("--json", help="Print JSON for machines on standard output.")]
MaxLength = Annotated[
    int | None,
    typer.Option("--max-length", min=4, help="Tokens of an example.", show_default="as in training, else 128"),
]
BatchSize = Annotated[int, typer.Option("--batch-size", min=1, help="Rows of one forward pass.")]
