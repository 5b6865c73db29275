"""`steadytune pretrain`."""

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from steadytune.cli import options
from steadytune.cli.output import err, out, print_json, quiet_libraries, table, watching
from steadytune.cli.train import check_parents, parse_setting

if TYPE_CHECKING:
    from steadytune.recipes import PretrainConfig

_EXAMPLE = """
A text file holds one text per line, or paragraphs between blank lines. What is saved is a plain model: fine-tune it
with `steadytune train DATA --model runs/novels`.

Example: `steadytune pretrain novels.txt --model new:4x256 --recipe asa --minutes 30 --output runs/novels`
"""


def pretrain(
    texts: Annotated[
        list[str] | None,
        typer.Argument(
            help="Text, JSONL or Parquet files, or folders of them, in order.", metavar="TEXT...", show_default=False
        ),
    ] = None,
    model: Annotated[
        str | None,
        typer.Option(
            "--model",
            "-m",
            help="`bundled`, a local folder, a name on the hub, `new:LAYERSxWIDTH`, or `new:` and a `config.json`.",
            show_default="bundled",
        ),
    ] = None,
    recipe: Annotated[
        str | None,
        typer.Option(
            "--recipe",
            "-r",
            help="`plain`, `plain-equal-time`, `consistency`, `asa-control-random`, `asa`, any other or a YAML file.",
            show_default="plain",
        ),
    ] = None,
    steps: Annotated[int | None, typer.Option(help="Optimizer steps: a budget that resumes bit for bit.")] = None,
    minutes: Annotated[float | None, typer.Option(help="Time of training, as the budget in place of steps.")] = None,
    settings: options.Set = None,
    config: options.Config = None,
    output: Annotated[
        str | None,
        typer.Option("--output", "-o", help="Folder of the run.", show_default="runs/pretrain-TEXT-RECIPE-SEED"),
    ] = None,
    seed: options.Seed = None,
    batch_size: Annotated[int | None, typer.Option(help="Sequences of one forward pass.", show_default="32")] = None,
    learning_rate: options.LearningRate = None,
    max_length: Annotated[int | None, typer.Option(help="Tokens of a sequence.", show_default="128")] = None,
    dev: Annotated[
        str | None,
        typer.Option(
            "--dev",
            help="File or folder of the texts to be measured on.",
            show_default="dev splits of the folders, or the end of the texts",
        ),
    ] = None,
    text_column: options.TextColumn = None,
    vocabulary: Annotated[
        int | None, typer.Option(help="Most tokens of the vocabulary that a new model learns.", show_default="8192")
    ] = None,
    fixed_count: Annotated[
        bool | None,
        typer.Option("--fixed-count/--by-chance", help="Mask as many places in every sequence.", show_default=False),
    ] = None,
    eval_rows: Annotated[int | None, typer.Option(help="Most sequences to be measured on.", show_default="256")] = None,
    as_json: options.Json = False,
) -> int:
    """Pre-train an encoder on raw texts by guessing masked tokens, plain or with a method."""
    from steadytune.training.pretrain import pretrain as run_pretraining

    run = {
        "steps": steps,
        "minutes": minutes,
        "batch_size": batch_size,
        "learning_rate": learning_rate,
        "max_length": max_length,
        "vocabulary": vocabulary,
        "fixed_count": fixed_count,
        "eval_rows": eval_rows,
    }
    source = {"train": texts or None, "dev": dev, "column": text_column}
    chosen = _config(config, recipe, settings or [], {"model": model, "seed": seed}, source, run)
    folder = Path(output) if output else _default_output(chosen)
    check_parents(folder)
    quiet_libraries()
    main_process = int(os.environ.get("RANK", "0")) == 0
    with watching(quiet=as_json or not main_process) as watch:
        record = run_pretraining(chosen, folder, watch=watch)
    if not main_process:
        return 0
    if as_json:
        print_json({**record.model_dump(mode="json", exclude={"history"}), "output": str(folder)})
    else:
        for note in record.data_notes:
            err.print(f"note: {note}", markup=False, soft_wrap=True)
        for notice in record.notices:
            err.print(f"note: {notice}", markup=False, soft_wrap=True)
        points = [[p.step, f"{p.seconds:.0f}", p.loss, p.accuracy] for p in record.curve]
        out.print(
            table(["step", "seconds", "loss", "accuracy"], [["-" if c is None else c for c in p] for p in points])
        )
        out.print(f"record  {folder / 'record.json'}", markup=False, soft_wrap=True)
        if record.status == "done":
            out.print(f"model   {folder / 'model'}", markup=False, soft_wrap=True)
    if record.status == "failed":
        err.print(f"steadytune: {record.failure}; the record says so.", markup=False)
        return 1
    return 0


pretrain.__doc__ = f"{pretrain.__doc__}\n{_EXAMPLE}"


def _config(
    path: str | None,
    recipe: str | None,
    settings: list[str],
    top: dict[str, Any],
    texts: dict[str, Any],
    run: dict[str, Any],
) -> "PretrainConfig":
    """Default, then file, then command line."""
    from steadytune.recipes import PretrainConfig, RecipeError, load_pretrain, load_pretrain_recipe
    from steadytune.recipes.pretraining import PretrainSettings, TextSettings
    from steadytune.recipes.recipe import validated

    base: dict[str, Any] = {"texts": {}, "recipe": load_pretrain_recipe("plain").model_dump(), "run": {}}
    if path:
        base = load_pretrain(path).model_dump()
    if recipe is not None:
        base["recipe"] = load_pretrain_recipe(recipe).model_dump()
    base |= options.given(top)
    base["texts"] |= options.given(texts)
    budget = options.given({name: run[name] for name in ("steps", "minutes")})
    if len(budget) == 1:  # takes the place of that of the file
        base["run"] |= {"steps": None, "minutes": None}
    base["run"] |= options.given(run)
    if not base["texts"].get("train"):
        raise RecipeError("no texts given; name files or folders after `steadytune pretrain`.")
    parsed = [parse_setting(text) for text in settings]
    base["run"] |= {name: value for key, name, value in parsed if key == "run"}
    flags = {name: f"--{name.replace('_', '-')}" for name in run}
    validated(TextSettings, base["texts"], "texts")
    validated(PretrainSettings, base["run"], "", path=lambda loc: flags.get(loc[-1], f"run.{loc[-1]}"))
    chosen = validated(PretrainConfig, base, "", path=lambda loc: f"--{'.'.join(loc)}")
    for key, name, value in parsed:
        if key != "run":
            chosen = chosen.model_copy(update={"recipe": chosen.recipe.with_setting(key, name, value)})
    chosen.recipe.build()
    return validated(PretrainConfig, chosen.model_dump(), "")


def _default_output(config: "PretrainConfig") -> Path:
    recipe = config.recipe.name.replace("pretrain/", "").replace("/", "-")
    return Path("runs") / f"pretrain-{options.data_name(config.texts.train[0])}-{recipe}-seed{config.seed}"
