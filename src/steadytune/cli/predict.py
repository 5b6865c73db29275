"""`steadytune evaluate` and `steadytune predict`."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from steadytune.cli import options
from steadytune.cli.answers import answers_of, show_answers, write_answers
from steadytune.cli.output import err, out, print_json, quiet_libraries, score_table

if TYPE_CHECKING:
    from steadytune.data import Examples
    from steadytune.recipes import RunConfig
    from steadytune.tasks import Task
    from steadytune.training.inference import Predicted


def evaluate(
    model: Annotated[str, typer.Argument(help="Folder of a run or of a model.")],
    data: Annotated[str, typer.Argument(help="As for `train`.")],
    split: Annotated[str | None, typer.Option(help="Split to score.", show_default="test, else dev")] = None,
    text_column: options.TextColumn = None,
    pair_column: options.PairColumn = None,
    label_column: options.LabelColumn = None,
    also: options.Also = None,
    max_length: options.MaxLength = None,
    batch_size: options.BatchSize = 64,
    as_json: options.Json = False,
) -> int:
    """Score a saved model on a split, and on robustness sets; labels are matched by name.

    Example: `steadytune evaluate runs/reviews reviews_2026.csv --split train`
    """
    from steadytune.cli.robustness import show_robustness
    from steadytune.data import DataError, available_splits, load_dataset
    from steadytune.data.robustness import RobustnessSet
    from steadytune.encoders.bundled import met_texts
    from steadytune.training.robustness import classes_of, robustness_rows, score_sets

    quiet_libraries()
    task, network, tokenizer = _load(model)
    there = available_splits(data)
    usual = [name for name in ("test", "dev", "validation", *there[:1]) if name in there]
    if split is None and not usual:
        raise DataError(f"{data} has no split to score.")
    chosen = split or usual[0]
    names = getattr(task, "label_names", ())
    trained = _trained(model)
    dataset = load_dataset(
        data,
        splits=[chosen],
        text_column=text_column or _column(trained, "text_column", data),
        pair_column=pair_column or _column(trained, "pair_column", data),
        label_column=label_column or _column(trained, "label_column", data),
        task=task.name,  # type: ignore[arg-type]  # a name of this list
        label_names=names or None,
    )
    rows = dataset.splits[chosen]
    roles = ("text_column", "pair_column", "label_column")
    wanted = [RobustnessSet.parse(text) for text in also or []]
    wanted = [one.like({role: _column(trained, role, one.source) for role in roles}) for one in wanted]
    sets = robustness_rows(wanted, task, rows)
    length = max_length or _trained_length(model, tokenizer)
    predicted = _predicted(network, tokenizer, task, rows, length, batch_size)
    scores = {chosen: task.scores(predicted.rows, rows.labels or ())}
    encoder = None if trained is None else trained.model
    found = score_sets(
        sets,
        network,
        task,
        tokenizer,
        max_length=length,
        batch_size=batch_size,
        own=(classes_of(predicted), rows.labels or ()) if sets else ((), ()),
        encoder=encoder,
    )
    if as_json:
        shown = {"model": model, "data": data, "split": chosen, "rows": len(rows), "scores": scores[chosen]}
        beside = {name: one.model_dump(mode="json") for name, one in found.items()}
        print_json({**shown, **({"robustness": beside} if also else {})})
        return 0
    for note in (*dataset.notes, *met_texts(encoder, dataset.name)):
        err.print(f"note: {note}", markup=False, soft_wrap=True)
    out.print(score_table(scores, {chosen: len(rows)}))
    if found:
        show_robustness(found)
    return 0


def predict(
    model: Annotated[str, typer.Argument(help="Folder of a run or of a model.")],
    data: Annotated[
        str | None, typer.Argument(help="CSV, TSV, JSONL or Parquet file; not needed with --text.", show_default=False)
    ] = None,
    text: Annotated[list[str] | None, typer.Option("--text", "-t", help="A text; may be repeated.")] = None,
    output: Annotated[
        str | None,
        typer.Option("--output", "-o", help="A new .jsonl or .csv file; shown otherwise, as JSON Lines with --json."),
    ] = None,
    text_column: options.TextColumn = None,
    pair_column: options.PairColumn = None,
    max_length: options.MaxLength = None,
    batch_size: options.BatchSize = 64,
    as_json: options.Json = False,
) -> int:
    """Label texts, tag words or answer questions with a saved model, with probabilities where it gives them.

    Example: `steadytune predict runs/reviews new.csv --output labelled.csv`
    """
    from steadytune.data import DataError, Examples, load_dataset

    if (data is None) == (not text):
        raise DataError("give either a file of texts or --text, not both and not none.")
    if output is not None:
        _check_output(Path(output))
    quiet_libraries()
    task, network, tokenizer = _load(model)
    notes: tuple[str, ...] = ()
    if text:
        rows = Examples(tuple(str(i + 1) for i in range(len(text))), _typed(text, task))
    else:
        assert data is not None
        trained = _trained(model)
        dataset = load_dataset(
            data,
            text_column=text_column or _column(trained, "text_column", data),
            pair_column=pair_column or _column(trained, "pair_column", data),
            task=task.name,  # type: ignore[arg-type]  # a name of this list
            require_labels=False,
        )
        if len(dataset.splits) > 1:
            raise DataError(f"{data} has several splits; name one file of texts.")
        notes = dataset.notes
        rows = next(iter(dataset.splits.values()))
    length = max_length or _trained_length(model, tokenizer)
    predicted = _predicted(network, tokenizer, task, rows, length, batch_size)
    answers = answers_of(rows, task.decode(predicted.rows))
    if output is not None:
        write_answers(Path(output), answers)
        for note in notes:
            err.print(f"note: {note}", markup=False, soft_wrap=True)
        err.print(f"wrote {len(answers)} rows to {output}", markup=False)
    elif as_json:
        for answer in answers:
            print_json(answer)
    else:
        show_answers(answers)
    return 0


def _typed(texts: Sequence[str], task: "Task") -> tuple[Any, ...]:
    """Texts of the command line, as the task takes them."""
    from steadytune.data import DataError

    if task.labels_by_token:
        words = tuple(tuple(text.split()) for text in texts)
        if not all(words):
            raise DataError("--text must hold a word; got an empty text.")
        return words
    if task.name in ("multiple_choice", "question_answering"):
        raise DataError(f"a {task.name} model reads more than one text of a row; give a file in place of --text.")
    return tuple(texts)


def _check_output(path: Path) -> None:
    from steadytune.training.loading import RunError

    if path.exists():
        raise RunError(f"--output {path} exists; name a new file.")
    if path.suffix not in (".jsonl", ".csv"):
        raise RunError(f"--output {path} must end in .jsonl or .csv.")
    if not path.parent.is_dir():
        raise RunError(f"--output {path} must lie in a folder that exists; make {path.parent} first.")


def _load(model: str) -> "tuple[Task, Any, Any]":
    from steadytune.tasks import infer_task
    from steadytune.training.loading import RunError, load_tokenizer, load_trained_model, locate_model

    if model == "bundled":
        raise RunError("the bundled encoder has no trained head; name the folder of a run or of a fine-tuned model.")
    if "/" not in model and not Path(model).exists():
        raise RunError(f"model folder {model} does not exist; a model on the hub is named owner/name.")
    source = locate_model(model)
    network = load_trained_model(source)
    network.eval()
    return infer_task(network), network, load_tokenizer(source)


def _trained(model: str) -> "RunConfig | None":
    """The run that the model comes from, or the best of those it was averaged from, if it lies beside it."""
    from steadytune.recipes import RunConfig, load_run
    from steadytune.recipes.recipe import validated
    from steadytune.records import SOUP_FILE, read_soup

    for folder in (Path(model), Path(model).parent):
        if not (folder / "model").is_dir():
            continue
        if (folder / "run.yaml").is_file():
            return load_run(folder / "run.yaml")
        if (folder / SOUP_FILE).is_file():
            return validated(RunConfig, read_soup(folder / SOUP_FILE).config, str(folder / SOUP_FILE))
    return None


def _column(trained: "RunConfig | None", role: str, data: str) -> str | None:
    """The column that the run was told to read, for tables of the same make."""
    if trained is None or not Path(data).is_file():
        return None
    name: str | None = getattr(trained.data, role)
    return name


def _trained_length(model: str, tokenizer: Any) -> int:
    """Tokens per example as in the run that the model comes from; 128, or what it can read, for other models."""
    trained = _trained(model)
    return trained.run.max_length if trained is not None else min(128, int(tokenizer.model_max_length))


def _predicted(
    network: Any, tokenizer: Any, task: "Task", rows: "Examples", max_length: int, batch_size: int
) -> "Predicted":
    """Finite predictions; says how many rows were cut."""
    from steadytune.data import PaddingCollator
    from steadytune.training.inference import predict as predict_rows
    from steadytune.training.loading import RunError

    encoded = task.encode(rows, tokenizer, max_length)
    collator = PaddingCollator(tokenizer, task.label_dtype, labels_by_token=task.labels_by_token)
    predicted = predict_rows(network, task, encoded, collator, batch_size)
    if not predicted.finite:
        raise RunError("the model gives scores that are not finite for these rows; train it again, or name another.")
    if encoded.truncated_rows:
        err.print(f"note: {encoded.truncated_rows} rows cut to {max_length} tokens", soft_wrap=True)
    return predicted
