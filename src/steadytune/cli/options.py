"""Options that several commands share, and what becomes of them."""

import shlex
import sys
from pathlib import Path
from typing import Annotated, Any

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
Task = Annotated[
    str | None,
    typer.Option(
        help="Where the data do not say it: `multi_label`, `token_classification`, `multiple_choice`, "
        "`question_answering`, ...; tagged words read as `multi_label` have the kinds of entity in them as labels."
    ),
]
Also = Annotated[
    list[str] | None,
    typer.Option(
        "--also",
        help="A robustness set, `SOURCE:SPLIT`, that trained models are scored on too; `SPLIT+SPLIT` for an original "
        "split and its revisions. May be repeated.",
    ),
]
Json = Annotated[bool, typer.Option("--json", help="Print JSON for machines on standard output.")]
MaxLength = Annotated[
    int | None,
    typer.Option("--max-length", min=4, help="Tokens of an example.", show_default="as in training, else 128"),
]
BatchSize = Annotated[int, typer.Option("--batch-size", min=1, help="Rows of one forward pass.")]
Epochs = Annotated[
    float | None, typer.Option(help="Passes over the training rows.", show_default="10, at least 150 steps")
]
TrainBatchSize = Annotated[int | None, typer.Option(help="Rows of one forward pass.", show_default="16")]
LearningRate = Annotated[float | None, typer.Option(help="Peak learning rate.")]
TrainMaxLength = Annotated[int | None, typer.Option(help="Tokens of an example.", show_default="128")]
TrainRows = Annotated[int | None, typer.Option(help="Training rows in total, stratified.")]
KShot = Annotated[int | None, typer.Option(help="Training rows per class.")]
Fraction = Annotated[float | None, typer.Option(help="Share of the training rows, per class.")]
EvalRows = Annotated[int | None, typer.Option(help="At most so many rows of dev and of test.")]
TrainSplit = Annotated[str | None, typer.Option(help="Training split.", show_default="train")]
Imbalance = Annotated[
    float | None,
    typer.Option(help="Training rows of the largest class over those of the smallest; geometric in between."),
]
LabelNoise = Annotated[
    float | None, typer.Option(help="Share of the training rows that get a wrong label.", show_default="0")
]
TextNoise = Annotated[
    float | None, typer.Option(help="Share of the training words misspelt or dropped.", show_default="0")
]


def given(values: dict[str, Any]) -> dict[str, Any]:
    """The options that somebody gave.

    Args:
        values: by name; None where nobody did.
    """
    return {name: value for name, value in values.items() if value is not None}


def run_block(
    epochs: float | None, batch_size: int | None, learning_rate: float | None, max_length: int | None
) -> dict[str, Any]:
    """What the options say of the `run` block.

    Args:
        epochs: asked for by number of epochs, that many are done, however few steps they are.
        batch_size: see `TrainBatchSize`.
        learning_rate: see `LearningRate`.
        max_length: see `TrainMaxLength`.
    """
    values = {"epochs": epochs, "batch_size": batch_size, "learning_rate": learning_rate, "max_length": max_length}
    return given({**values, "min_steps": None if epochs is None else 1})


def data_name(source: str) -> str:
    """The name of a data set for folders and tables.

    Args:
        source: as given on the command line.
    """
    return Path(source).resolve().name.split(".")[0]


def command_line() -> str:
    """The command in progress, as a shell would read it."""
    return shlex.join(["steadytune", *sys.argv[1:]])
