"""`steadytune train`."""

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
import yaml

from steadytune.cli import options
from steadytune.cli.output import err, out, print_json, quiet_libraries, score_table, watching

if TYPE_CHECKING:
    from steadytune.recipes import RunConfig

_EXAMPLE = """
Example: `steadytune train reviews.csv --recipe scl --train-rows 200 --output runs/reviews`
"""


def train(
    data: Annotated[
        str | None,
        typer.Argument(
            help="CSV, TSV, JSONL or Parquet file, dataset folder, `owner/name` on the hub, or `sample`.",
            show_default=False,
        ),
    ] = None,
    recipe: options.Recipe = None,
    settings: options.Set = None,
    config: options.Config = None,
    model: options.Model = None,
    output: Annotated[
        str | None, typer.Option("--output", "-o", help="Folder of the run.", show_default="runs/DATA-RECIPE-SEED")
    ] = None,
    seed: options.Seed = None,
    epochs: options.Epochs = None,
    batch_size: options.TrainBatchSize = None,
    learning_rate: options.LearningRate = None,
    max_length: options.TrainMaxLength = None,
    train_rows: options.TrainRows = None,
    k_shot: options.KShot = None,
    fraction: options.Fraction = None,
    eval_rows: options.EvalRows = None,
    imbalance: options.Imbalance = None,
    label_noise: options.LabelNoise = None,
    label_noise_kind: Annotated[
        str | None, typer.Option(help="`uniform`, any other class; `pair`, the next class.", show_default="uniform")
    ] = None,
    text_noise: options.TextNoise = None,
    train_split: options.TrainSplit = None,
    dev_split: Annotated[str | None, typer.Option(help="Validation split.")] = None,
    test_split: Annotated[str | None, typer.Option(help="Test split.")] = None,
    text_column: options.TextColumn = None,
    pair_column: options.PairColumn = None,
    label_column: options.LabelColumn = None,
    task: options.Task = None,
    as_json: options.Json = False,
) -> int:
    """Fine-tune one encoder with one recipe; a killed run goes on when the command is repeated."""
    from steadytune.training.fit import fit

    run = options.run_block(epochs, batch_size, learning_rate, max_length)
    rows = {
        "source": data,
        "train_rows": train_rows,
        "k_shot": k_shot,
        "fraction": fraction,
        "eval_rows": eval_rows,
        "imbalance": imbalance,
        "label_noise": label_noise,
        "label_noise_kind": label_noise_kind,
        "text_noise": text_noise,
        "train_split": train_split,
        "dev_split": dev_split,
        "test_split": test_split,
        "text_column": text_column,
        "pair_column": pair_column,
        "label_column": label_column,
        "task": task,
    }
    chosen = _config(config, recipe, settings or [], {"model": model, "seed": seed}, rows, run)
    folder = Path(output) if output else _default_output(chosen)
    check_parents(folder)
    quiet_libraries()
    main_process = int(os.environ.get("RANK", "0")) == 0
    with watching(quiet=as_json or not main_process) as watch:
        record = fit(chosen, folder, watch=watch)
    if not main_process:
        return 0
    if as_json:
        print_json({**record.model_dump(mode="json", exclude={"history"}), "output": str(folder)})
    else:
        for note in record.data_notes:
            err.print(f"note: {note}", markup=False, soft_wrap=True)
        out.print(score_table(record.scores, record.data_rows))
        out.print(f"record  {folder / 'record.json'}", markup=False, soft_wrap=True)
        if record.status == "done":
            out.print(f"model   {folder / 'model'}", markup=False, soft_wrap=True)
    if record.status == "failed":
        err.print(f"steadytune: {record.failure}; the record says so.", markup=False)
        return 1
    return 0


train.__doc__ = f"{train.__doc__}\n{_EXAMPLE}"


def _config(
    path: str | None,
    recipe: str | None,
    settings: list[str],
    top: dict[str, Any],
    rows: dict[str, Any],
    run: dict[str, Any],
) -> "RunConfig":
    """Default, then file, then command line."""
    from steadytune.recipes import DataSettings, RecipeError, RunConfig, RunSettings, load_recipe, load_run
    from steadytune.recipes.recipe import validated

    base = load_run(path).model_dump() if path else {"data": {}, "recipe": load_recipe("plain").model_dump(), "run": {}}
    if recipe is not None:
        base["recipe"] = load_recipe(recipe).model_dump()
    base |= options.given(top)
    base["data"] |= options.given(rows)
    base["run"] |= run
    if not base["data"].get("source"):
        raise RecipeError("no data given; name a file, a folder, owner/name or `sample` after `steadytune train`.")
    for kind, values in ((DataSettings, base["data"]), (RunSettings, base["run"])):
        validated(kind, values, "", path=lambda loc: f"--{loc[-1].replace('_', '-')}")
    chosen = validated(RunConfig, base, "", path=lambda loc: f"--{'.'.join(loc)}")
    for text in settings:
        chosen = _apply(chosen, text)
    chosen.recipe.build()
    return validated(RunConfig, chosen.model_dump(), "")


def _apply(config: "RunConfig", text: str) -> "RunConfig":
    key, name, value = parse_setting(text)
    if key == "run":
        return config.with_run_setting(name, value)
    return config.model_copy(update={"recipe": config.recipe.with_setting(key, name, value)})


def parse_setting(text: str) -> tuple[str, str, Any]:
    """Key, name and value of one `--set`.

    Args:
        text: as given.
    Raises:
        RecipeError: it is not of the form KEY.NAME=VALUE.
    """
    from steadytune.recipes import RecipeError
    from steadytune.recipes.recipe import parse_yaml

    path, equals, value = text.partition("=")
    key, dot, name = path.strip().partition(".")
    if not (equals and dot and key and name):
        raise RecipeError(f"--set takes KEY.NAME=VALUE, for example scl.temperature=0.1; got {text!r}.")
    try:
        return key, name, parse_yaml(value)
    except yaml.YAMLError:
        raise RecipeError(f"--set {path}: {value!r} is not a value; quote it.") from None


def check_parents(folder: Path) -> None:
    """Refuse a folder that lies below a file.

    Args:
        folder: of a run.
    Raises:
        RunError: with the file.
    """
    from steadytune.training.loading import RunError

    in_the_way = next((parent for parent in folder.parents if parent.exists() and not parent.is_dir()), None)
    if in_the_way is not None:
        raise RunError(f"--output {folder} lies below {in_the_way}, which is a file; name another folder.")


def _default_output(config: "RunConfig") -> Path:
    return (
        Path("runs")
        / f"{options.data_name(config.data.source)}-{config.recipe.name.replace('/', '-')}-seed{config.seed}"
    )
