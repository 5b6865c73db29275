"""`steadytune compare`."""

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from steadytune.cli import options
from steadytune.cli.output import out, print_json, quiet_libraries
from steadytune.cli.progress import announce, final_seconds, line_per_run, print_verdicts

_EXAMPLE = """
Example: `steadytune compare reviews.csv --recipes plain,scl,hype --seeds 10 --output runs/reviews`
"""


def compare(
    data: Annotated[
        str,
        typer.Argument(help="CSV, TSV, JSONL or Parquet file, dataset folder, `owner/name` on the hub, or `sample`."),
    ],
    recipes: Annotated[str, typer.Option(help="Recipes or stacks, comma-separated; the first is the baseline.")],
    second_baseline: Annotated[
        str, typer.Option(help="A recipe that every gain is also held against; `none` for none.")
    ] = "strong",
    seeds: Annotated[int, typer.Option(help="Runs of each recipe; a verdict needs at least 5.")] = 5,
    controls: Annotated[bool, typer.Option("--controls", help="Also run what isolates each method.")] = False,
    layers: Annotated[bool, typer.Option("--layers", help="Also look inside the models of the first seed.")] = False,
    also: options.Also = None,
    budget: Annotated[str, typer.Option(help="`equal-steps`, `equal-compute` or `both`.")] = "equal-steps",
    model: options.Model = None,
    output: Annotated[str | None, typer.Option("--output", "-o", help="Folder of the study.")] = None,
    epochs: options.Epochs = None,
    batch_size: options.TrainBatchSize = None,
    learning_rate: options.LearningRate = None,
    max_length: options.TrainMaxLength = None,
    train_rows: options.TrainRows = None,
    k_shot: options.KShot = None,
    fraction: options.Fraction = None,
    eval_rows: options.EvalRows = None,
    train_split: options.TrainSplit = None,
    label_noise: options.LabelNoise = None,
    text_noise: options.TextNoise = None,
    imbalance: options.Imbalance = None,
    text_column: options.TextColumn = None,
    pair_column: options.PairColumn = None,
    label_column: options.LabelColumn = None,
    task: options.Task = None,
    as_json: options.Json = False,
) -> int:
    """Run several recipes with several seeds on one data set, and say which one helps.

    A killed comparison goes on when the command is repeated; no finished run is repeated.
    """
    from steadytune.recipes.recipe import validated
    from steadytune.reports.document import write_report
    from steadytune.reports.verdict import verdict_tables
    from steadytune.studies import Plan
    from steadytune.studies.execute import prepare_store
    from steadytune.studies.executors import Agenda, records_of, run_here
    from steadytune.studies.outlook import look_ahead

    quiet_libraries()
    name = options.data_name(data)
    columns = {"text_column": text_column, "pair_column": pair_column, "label_column": label_column, "task": task}
    rows = {
        "train_rows": train_rows,
        "k_shot": k_shot,
        "fraction": fraction,
        "eval_rows": eval_rows,
        "train_split": train_split,
        "label_noise": label_noise,
        "text_noise": text_noise,
        "imbalance": imbalance,
    }
    protocol = options.given(rows)
    wanted = {
        "name": name,
        "model": model or "bundled",
        "tasks": {name: {"source": data, **options.given(columns), **({"robustness": also} if also else {})}},
        "protocols": {", ".join(f"{key} {value}" for key, value in protocol.items()) or "all rows": protocol},
        "recipes": [part.strip() for part in recipes.split(",")],
        "second_baseline": None if second_baseline == "none" else second_baseline,
        "controls": controls,
        "layers": layers,
        "seeds": seeds,
        "run": options.run_block(epochs, batch_size, learning_rate, max_length),
        "budget": budget,
    }
    plan = validated(Plan, wanted, "", path=lambda place: f"--{place[-1].replace('_', '-')}")
    outlook = look_ahead(plan)
    folder = Path(output) if output else Path("runs") / f"compare-{name}"
    store = prepare_store(plan, outlook, folder, options.command_line())
    agenda = Agenda.of(plan, outlook)
    if not as_json:
        announce(plan, outlook, agenda.total, agenda.finished(store), final_seconds(plan, outlook))
    run_here(agenda, store, watch=line_per_run(agenda.finished(store)))
    records = records_of(agenda.planned, store)
    tables, page = verdict_tables(records), write_report(store.folder)
    if as_json:
        shown = [asdict(found) for found in tables]
        print_json({"output": str(store.folder), "report": str(page), "tables": shown})
    else:
        for found in tables:
            print_verdicts(found)
        out.print(f"report  {page}", markup=False, soft_wrap=True)
    return 0 if all(record.status == "done" for record in records) else 1


compare.__doc__ = f"{compare.__doc__}\n{_EXAMPLE}"
