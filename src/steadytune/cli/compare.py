"""`steadytune compare`."""

import time
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from steadytune.cli import options
from steadytune.cli.output import err, out, print_json, quiet_libraries, table

if TYPE_CHECKING:
    from steadytune.reports.verdict import Arm, Table
    from steadytune.studies import Plan
    from steadytune.studies.outlook import Outlook

_ASSUMED_SD = 0.02  # of paired differences, before any is measured
_EXAMPLE = """
Example: `steadytune compare reviews.csv --recipes plain,scl,hype --seeds 10 --output runs/reviews`
"""


def compare(
    data: Annotated[
        str,
        typer.Argument(help="CSV, TSV, JSONL or Parquet file, dataset folder, `owner/name` on the hub, or `sample`."),
    ],
    recipes: Annotated[str, typer.Option(help="Recipes or stacks, comma-separated; the first is the baseline.")],
    seeds: Annotated[int, typer.Option(help="Runs of each recipe; a verdict needs at least 5.")] = 5,
    controls: Annotated[bool, typer.Option("--controls", help="Also run what isolates each method.")] = False,
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
    as_json: options.Json = False,
) -> int:
    """Run several recipes with several seeds on one data set, and say which one helps.

    A killed comparison goes on when the command is repeated; no finished run is repeated.
    """
    from steadytune.recipes.recipe import validated
    from steadytune.reports.verdict import verdict_tables
    from steadytune.studies import Plan, execute
    from steadytune.studies.execute import open_store
    from steadytune.studies.outlook import look_ahead
    from steadytune.studies.overview import write_overview

    quiet_libraries()
    name = options.data_name(data)
    columns = {"text_column": text_column, "pair_column": pair_column, "label_column": label_column}
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
        "tasks": {name: {"source": data, **options.given(columns)}},
        "protocols": {", ".join(f"{key} {value}" for key, value in protocol.items()) or "all rows": protocol},
        "recipes": [part.strip() for part in recipes.split(",")],
        "controls": controls,
        "seeds": seeds,
        "run": options.run_block(epochs, batch_size, learning_rate, max_length),
        "budget": budget,
    }
    plan = validated(Plan, wanted, "", path=lambda place: f"--{place[-1].replace('_', '-')}")
    outlook = look_ahead(plan)
    store = open_store(plan, Path(output) if output else Path("runs") / f"compare-{name}")
    write_overview(store, plan, outlook, options.command_line())
    cells = plan.cells(dict(outlook.equal_compute_steps))
    if not as_json:
        _announce(plan, outlook, len({cell.id for cell in cells}), len(store.done()))
    execute(cells, store, watch=_watch())
    wanted_ids = {cell.id for cell in cells}
    records = [record for cell, record in store.records().items() if cell in wanted_ids]
    tables = verdict_tables(records)
    if as_json:
        print_json({"output": str(store.folder), "tables": [asdict(found) for found in tables]})
    else:
        for found in tables:
            _print(found)
        out.print(f"records  {store.folder / 'records'}", markup=False, soft_wrap=True)
    return 0 if all(record.status == "done" for record in records) else 1


compare.__doc__ = f"{compare.__doc__}\n{_EXAMPLE}"


def _announce(plan: "Plan", outlook: "Outlook", cells: int, done: int) -> None:
    """What will run, how long it takes, and what it could find."""
    from steadytune.reports.statistics import detectable_difference

    seconds = {"equal-steps": outlook.seconds, "equal-compute": outlook.equal_compute_seconds}
    kinds = [seconds[plan.budget]] if plan.budget != "both" else list(seconds.values())
    minutes = len(plan.seed_list) * sum(sum(kind.values()) for kind in kinds) / 60
    err.print(f"{cells} runs, {done} on record; about {minutes:.0f} minutes for all of them.", markup=False)
    against = sum(role == "recipe" for _, role in plan.arms())
    smallest = detectable_difference(len(plan.seed_list), _ASSUMED_SD, max(against, 1))
    if smallest is None:
        err.print(f"too few seeds for any verdict ({len(plan.seed_list)}); use at least 5.", markup=False)
    else:
        err.print(
            f"smallest difference that {len(plan.seed_list)} seeds can be expected to find (power 0.8, if paired "
            f"differences spread by {100 * _ASSUMED_SD:g} points): {100 * smallest:.1f} points.",
            markup=False,
        )
    for (task, protocol), report in outlook.data.items():
        for note in report.notes():
            err.print(f"note: {task}, {protocol}: {note}", markup=False, soft_wrap=True)


def _watch() -> Any:
    """Prints a line when a run ends, with the time that is left."""
    from steadytune.studies import Moment

    started, first = time.monotonic(), -1

    def watch(moment: Moment) -> None:
        nonlocal first
        if moment.cell is not None:
            first = moment.done if first < 0 else first
            return
        ran = moment.done - first
        left = (moment.total - moment.done) * (time.monotonic() - started) / ran / 60 if ran > 0 else 0.0
        err.print(f"run {moment.done} of {moment.total} done, about {left:.0f} minutes left", markup=False)

    return watch


def _print(found: "Table") -> None:
    columns = ["recipe", found.metric, "difference (95 %)", "p", "verdict", "failed", "units"]
    title = f"{found.task}, {found.protocol}, equal {found.budget}, test split"
    out.print(table(columns, [_row(arm) for arm in found.arms], title=title))
    for arm in found.arms:
        if arm.verdict is not None:
            out.print(f"{arm.recipe}: {arm.verdict.reason}", markup=False, soft_wrap=True)


def _row(arm: "Arm") -> list[str]:
    score = "-" if arm.mean is None else f"{100 * arm.mean:.1f}" + ("" if arm.sd is None else f" ± {100 * arm.sd:.1f}")
    paired = arm.comparison
    difference = "" if paired is None or paired.mean is None else f"{100 * paired.mean:+.1f}"
    if paired is not None and paired.interval is not None:
        difference += f" ({100 * paired.interval.low:+.1f} to {100 * paired.interval.high:+.1f})"
    corrected = None if arm.verdict is None else arm.verdict.adjusted_p_value
    adjusted = "" if corrected is None else f"{corrected:.3f}"
    outcome = "" if arm.verdict is None else arm.verdict.outcome
    units = "" if arm.pass_units is None else f"{arm.pass_units:.0f}"
    name = arm.recipe if arm.role == "recipe" else f"{arm.recipe} ({arm.role})"
    return [name, score, difference, adjusted, outcome, str(arm.failed), units]
