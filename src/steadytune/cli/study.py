"""`steadytune study`."""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from steadytune.cli import options
from steadytune.cli.output import err, out, print_json, quiet_libraries, table
from steadytune.cli.progress import announce, final_seconds, line_per_run, print_verdicts

if TYPE_CHECKING:
    from steadytune.records import RunRecord, StudyStore
    from steadytune.studies import Cell, Plan
    from steadytune.studies.executors import Agenda
    from steadytune.studies.outlook import Outlook, Place
    from steadytune.studies.search import Choice

_ROWS_SHOWN = 40  # of a dry run; more are shown by place
_EXAMPLE = """
Example: `steadytune study plan.yaml --workers 4`, where `plan.yaml` holds

    tasks: {support: {source: sample}}
    protocols: {few: {k_shot: 5}, all: {}}
    recipes: [plain, scl, scl+hype]
    seeds: 10
    search:
      trials: 8
      space: {run.learning_rate: {low: 1e-5, high: 3e-4, log: true}}
"""


def study(
    plan: Annotated[str, typer.Argument(help="YAML file of the plan.")],
    output: Annotated[
        str | None, typer.Option("--output", "-o", help="Folder of the study.", show_default="runs/study-PLAN")
    ] = None,
    tasks: Annotated[
        str | None, typer.Option(help="Only these tasks of the plan, comma-separated.", show_default="all")
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Print runs, cost and what is done; write nothing.")
    ] = False,
    workers: Annotated[int, typer.Option(min=1, help="Processes that share the runs and the threads.")] = 1,
    on_ray: Annotated[bool, typer.Option("--ray", help="Run on Ray: on `RAY_ADDRESS`, or this machine.")] = False,
    as_json: options.Json = False,
) -> int:
    """Run a plan: tasks × protocols × recipes × seeds, with a search for settings first if the plan has one.

    A killed study goes on when the command is repeated, and several commands may work on one folder at the same time;
    no finished run is repeated.
    """
    from steadytune.reports.document import write_report
    from steadytune.reports.verdict import verdict_tables
    from steadytune.studies import executors
    from steadytune.studies.execute import prepare_store
    from steadytune.studies.outlook import look_ahead
    from steadytune.studies.overview import name_final_runs

    quiet_libraries()
    if on_ray:
        if workers > 1:
            raise typer.BadParameter("--ray divides the runs by itself; leave --workers out.")
        executors.ray_module()
    wanted = _narrowed(_checked(plan), plan, tasks)
    with _located(plan):
        outlook = look_ahead(wanted)
        agenda = executors.Agenda.of(wanted, outlook)
        agenda.chains  # noqa: B018 - what cannot be is refused now
    folder = Path(output) if output else Path("runs") / f"study-{Path(plan).stem}"
    if dry_run:
        rows = _planned(agenda, outlook, _store_unchanged(wanted, folder))
        _show_planned(rows, folder, as_json)
        return 0
    store = prepare_store(wanted, outlook, folder, options.command_line())
    if not as_json:
        seconds = final_seconds(wanted, outlook) + sum(row.seconds for row in _planned_trials(agenda, outlook, {}))
        announce(wanted, outlook, agenda.total, agenda.finished(store), seconds)
    watch = line_per_run(agenda.finished(store))
    if on_ray:
        executors.run_on_ray(agenda, store, watch=watch, begin=quiet_libraries)
    elif workers > 1:
        executors.run_in_processes(agenda, store, workers, watch=watch, begin=quiet_libraries)
    else:
        executors.run_here(agenda, store, watch=watch)
    choices = agenda.choices(store)
    cells = agenda.final_cells(choices)
    name_final_runs(store, cells)
    records = executors.records_of(cells, store)
    tables, page = verdict_tables(records), write_report(store.folder)
    left = len(agenda.planned) - len(records)
    if as_json:
        chosen = [_chosen_json(place, choice) for place, choice in choices.items()]
        shown = [asdict(found) for found in tables]
        print_json({"output": str(store.folder), "report": str(page), "left": left, "chosen": chosen, "tables": shown})
    else:
        _show_choices(choices)
        for found in tables:
            print_verdicts(found)
        out.print(f"report  {page}", markup=False, soft_wrap=True)
    if left:
        err.print(f"{left} of {left + len(records)} final runs have no record; repeat the command.", markup=False)
    return 0 if left == 0 and all(record.status == "done" for record in records) else 1


study.__doc__ = f"{study.__doc__}\n{_EXAMPLE}"


def _narrowed(plan: "Plan", place: str, tasks: str | None) -> "Plan":
    """The plan with some of its tasks."""
    from steadytune.studies import PlanError

    if tasks is None:
        return plan
    names = [name.strip() for name in tasks.split(",")]
    for name in names:
        if name not in plan.tasks:
            raise PlanError(f"{place} has no task {name!r}; its tasks are {', '.join(plan.tasks)}.")
    return plan.model_copy(update={"tasks": {name: plan.tasks[name] for name in names}})


@contextmanager
def _located(place: str) -> Iterator[None]:
    """What is refused inside is refused with the place where it was asked for."""
    from steadytune.studies import PlanError

    try:
        yield
    except ValueError as error:
        if type(error).__module__.startswith("steadytune."):
            raise PlanError(f"{place}: {error}") from None
        raise


def _checked(path: str) -> "Plan":
    """The plan of a file, with all that can be known of it without reading data."""
    from steadytune.recipes import RunConfig, load_recipe
    from steadytune.recipes.recipe import validated
    from steadytune.studies import PlanError, load_plan
    from steadytune.studies.search import check_search

    plan = load_plan(path)
    names: dict[str, int] = {}
    for index, given in enumerate(plan.recipes):
        with _located(f"{path}: recipes[{index}]"):
            name = load_recipe(given).name
            if name in names:
                raise PlanError(f"the name {name!r} is that of recipes[{names[name]}] too; names must differ.")
            names[name] = index
    with _located(path):
        recipe = plan.arms()[0][0].model_dump()
        for task in plan.tasks:
            for protocol in plan.protocols:
                data = plan.data(task, protocol).model_dump()
                for seed in plan.seed_list:
                    run = {"data": data, "recipe": recipe, "run": plan.run.model_dump()}
                    validated(RunConfig, {**run, "model": recipe.get("model", plan.model), "seed": seed}, "")
        check_search(plan)
    return plan


def _store_unchanged(plan: "Plan", folder: Path) -> "StudyStore":
    """The store of a plan, without writing anything."""
    from steadytune.records import StudyStore
    from steadytune.studies.execute import open_store

    begun = folder.exists() and (not folder.is_dir() or any(folder.iterdir()))
    return open_store(plan, folder) if begun else StudyStore(folder)


@dataclass(frozen=True)
class _Row:
    """One planned run. `state` is "done", "failed" or "open"."""

    task: str
    protocol: str
    recipe: str
    role: str
    budget: str
    seed: int
    trial: int | None
    seconds: float
    pass_units: float
    state: str


def _planned(agenda: "Agenda", outlook: "Outlook", store: "StudyStore") -> list[_Row]:
    """Every run of a study, trials first."""
    from steadytune.studies.executors import recorded
    from steadytune.studies.search import explore, place_of

    states: dict[tuple[Place, int, int], str] = {}

    def found(cell: "Cell") -> "RunRecord | None":
        record = recorded(cell, store)
        assert cell.trial is not None
        if record is not None:
            states[place_of(cell), cell.trial, cell.config.seed] = record.status
        return record

    choices = {}
    for chain in agenda.chains:
        if (choice := explore(chain, found)) is not None:
            choices[chain.place] = choice
    rows = _planned_trials(agenda, outlook, states)
    ready = {(place_of(cell), cell.budget, cell.config.seed): cell for cell in agenda.final_cells(choices)}
    for cell in agenda.planned:
        chosen = ready.get((place_of(cell), cell.budget, cell.config.seed))
        record = None if chosen is None else recorded(chosen, store)
        rows.append(_row(cell, outlook, None, cell.config.seed, "open" if record is None else record.status))
    return rows


def _planned_trials(agenda: "Agenda", outlook: "Outlook", states: "Mapping[tuple[Place, int, int], str]") -> list[_Row]:
    """Every trial of a study; after the first without a record, no suggestion is known yet."""
    return [
        _row(chain.finals[0], outlook, number, seed, states.get((chain.place, number, seed), "open"))
        for chain in agenda.chains
        for number in range(chain.search.trials)
        for seed in chain.search.seeds
    ]


def _row(cell: "Cell", outlook: "Outlook", trial: int | None, seed: int, state: str) -> _Row:
    place = (cell.task, cell.protocol, cell.recipe)
    compute = cell.budget == "compute"
    steps = (outlook.equal_compute_steps if compute else outlook.steps)[place]
    return _Row(
        *place,
        role=cell.role if trial is None else "trial",
        budget=cell.budget,
        seed=seed,
        trial=trial,
        seconds=(outlook.equal_compute_seconds if compute else outlook.seconds)[place],
        pass_units=steps * outlook.units_per_step[place],
        state=state,
    )


def _show_planned(rows: Sequence[_Row], folder: Path, as_json: bool) -> None:
    left = sum(row.seconds for row in rows if row.state == "open")
    if as_json:
        print_json({"output": str(folder), "seconds_left": left, "runs": [asdict(row) for row in rows]})
        return
    if len(rows) <= _ROWS_SHOWN:
        columns = ["task", "protocol", "recipe", "role", "equal", "trial", "seed", "seconds", "units", "state"]
        shown = [
            [*_place(row), "" if row.trial is None else row.trial, row.seed, *_cost(row), row.state] for row in rows
        ]
    else:
        columns = [
            "task",
            "protocol",
            "recipe",
            "role",
            "equal",
            "runs",
            "done",
            "failed",
            "seconds each",
            "units each",
        ]
        groups: dict[tuple[str, ...], list[_Row]] = {}
        for row in rows:
            groups.setdefault(_place(row), []).append(row)
        shown = []
        for place, group in groups.items():
            states = Counter(row.state for row in group)
            shown.append([*place, len(group), states["done"], states["failed"], *_cost(group[0])])
    out.print(table(columns, shown))
    states = Counter(row.state for row in rows)
    counts = f"{len(rows)} runs, {states['done']} done, {states['failed']} failed"
    out.print(f"{counts}; about {left / 60:.0f} minutes for the rest.", markup=False)


def _place(row: _Row) -> tuple[str, ...]:
    return row.task, row.protocol, row.recipe, row.role, row.budget


def _cost(row: _Row) -> tuple[str, str]:
    return f"{row.seconds:.0f}", f"{row.pass_units:.0f}"


def _chosen_json(place: "Place", choice: "Choice") -> dict[str, Any]:
    return {**dict(zip(("task", "protocol", "recipe"), place, strict=True)), **asdict(choice)}


def _show_choices(choices: "Mapping[Place, Choice]") -> None:
    if choices:
        rows = []
        for place, choice in choices.items():
            settings = ", ".join(f"{name} {_short(value)}" for name, value in (choice.settings or {}).items())
            score = "-" if choice.score is None else f"{100 * choice.score:.1f}"
            rows.append([*place, settings or "none: every trial failed", score, choice.failed])
        out.print(table(["task", "protocol", "recipe", "chosen on dev", "score", "failed"], rows, title="search"))


def _short(value: object) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)
