"""Soups: one model from the mean of the weights of several finished runs.

Source: Wortsman et al., ICML 2022, arXiv 2203.05482.
"""

import math
import os
import shutil
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar

import torch
from torch import Tensor

from steadytune.data import PaddingCollator, Selection
from steadytune.recipes import RunConfig
from steadytune.recipes.recipe import validated
from steadytune.records import SOUP_FILE, Ingredient, RunRecord, SoupRecord, read_record, write_json
from steadytune.tasks import QuestionAnswering, Task, infer_task, task_of
from steadytune.training import surroundings
from steadytune.training.export import export_model, soup_card
from steadytune.training.inference import predict
from steadytune.training.loading import ModelSource, load_config, load_tokenizer, load_trained_model
from steadytune.training.prepare import dataset_of, selection_of

Item = TypeVar("Item")
Rule = Literal["greedy", "uniform"]


class SoupError(ValueError):
    """Runs make no soup."""


def averaged_weights(states: Iterable[Mapping[str, Tensor]]) -> dict[str, Tensor]:
    """The equal mean of several state dicts, summed in float64 and cast back to the dtype of each tensor.

    Tensors that hold no floating-point numbers, such as position ids, are those of the first.

    Args:
        states: with the same names, shapes and dtypes; read one at a time, left as they are.
    Returns:
        New tensors by name; of a single state dict, its very values.
    Raises:
        SoupError: there is none, or two disagree.
    Source: Wortsman et al. 2022, §2; `average` in recipe 1.
    """
    first: Mapping[str, Tensor] = {}
    sums: dict[str, Tensor] = {}
    count = 0
    for state in states:
        if count == 0:
            first = state
            sums = {
                name: torch.zeros_like(t, dtype=torch.float64) for name, t in first.items() if t.is_floating_point()
            }
        _check_same_tensors(first, state)
        for name, total in sums.items():
            total += state[name]
        count += 1
    if not count:
        raise SoupError("a mean needs the weights of one model or more; got none.")
    return {name: (sums[name] / count).to(t.dtype) if name in sums else t.clone() for name, t in first.items()}


def _check_same_tensors(first: Mapping[str, Tensor], other: Mapping[str, Tensor]) -> None:
    for name in [*first, *other]:
        if name not in first or name not in other:
            raise SoupError(f"the weights do not average: only some of the models have {name}.")
        one, two = first[name], other[name]
        if one.shape != two.shape:
            raise SoupError(f"the weights do not average: {name} is {tuple(one.shape)} and {tuple(two.shape)}.")
        if one.dtype != two.dtype:
            raise SoupError(f"the weights do not average: {name} is {one.dtype} and {two.dtype}.")


def greedy_choice(ranked: Sequence[Item], score: Callable[[Sequence[Item]], float]) -> list[Item]:
    """The ingredients of a greedy soup.

    The first is always in. Each of the others, in turn, is added if the soup with it scores at least as high as the
    soup so far: equality admits, as in the paper's recipe, which compares with ≥.

    Args:
        ranked: at least one, best first.
        score: of the soup of these ingredients, on validation; higher is better.
    Returns:
        Those that are kept, in their order.
    Source: Wortsman et al. 2022, recipe 1 (GreedySoup).
    """
    kept = [ranked[0]]
    best = score(kept)
    for item in ranked[1:]:
        candidate = score([*kept, item])
        if candidate >= best:
            kept, best = [*kept, item], candidate
    return kept


@dataclass(frozen=True)
class _Run:
    """A finished run."""

    folder: Path
    record: RunRecord
    config: RunConfig

    @property
    def dev_score(self) -> float | None:
        return self.record.scores.get("dev", {}).get(self.record.metric)

    @property
    def source(self) -> ModelSource:
        return ModelSource(str(self.folder), str(self.folder / "model"), self.folder.name)

    def weights(self) -> dict[str, Tensor]:
        found: dict[str, Tensor] = load_trained_model(self.source).state_dict()
        return found


def make_soup(
    folders: Sequence[Path], output: Path, *, rule: Rule = "greedy", tell: Callable[[str], None] = lambda line: None
) -> SoupRecord:
    """Average the weights of finished runs, and save the model with a record of how it came about.

    Runs are ranked by the validation score in their records, equals in the order given. Every candidate is scored on
    the validation rows alone; the test rows are opened once, for the soup that came out.

    Args:
        folders: of runs that started from the same weights with the same head, and were scored on the same rows.
        output: folder of the soup, new or empty: `model/`, `soup.json`. It appears whole or not at all.
        rule: "greedy", see `greedy_choice`; "uniform", all of them.
        tell: told one line about every soup that is scored on validation.
    Raises:
        SoupError: the runs make no soup, their rows changed, or the folder holds something.
        StoreError: a record cannot be read.
        RunError: a model cannot be read.
        DataError: the data cannot be read.
    Source: Wortsman et al. 2022, recipe 1 (greedy) and §2 (uniform).
    """
    _check_output(output)
    runs = _opened(folders)
    runs.sort(key=lambda run: -(run.dev_score or 0.0))
    best = runs[0]
    kitchen = _Kitchen(best)

    def dev_score(chosen: Sequence[_Run]) -> float:
        value = kitchen.scores(chosen, "dev").get(best.record.metric)
        tell(f"validation {best.record.metric} {_shown(value)}: {' + '.join(str(run.folder) for run in chosen)}")
        return -math.inf if value is None else value

    kept = greedy_choice(runs, dev_score) if rule == "greedy" else runs
    scores = {split: kitchen.scores(kept, split) for split in ("dev", "test")}
    if not all(scores.values()):
        raise SoupError("the mean of the weights of these runs gives scores that are not finite; leave some out.")
    record = SoupRecord(
        rule=rule,
        task=best.record.task,
        metric=best.record.metric,
        label_names=best.record.label_names,
        model_name=best.record.model_name,
        model_revision=best.record.model_revision,
        head_seed=best.config.head_seed,
        config=best.record.config,
        data_fingerprints={name: best.record.data_fingerprints[name] for name in scores},
        data_rows={name: len(getattr(kitchen.selection, name)) for name in scores},
        ingredients=[_ingredient(run, output, kept=run in kept) for run in runs],
        scores=scores,
        best_scores={name: best.record.scores[name] for name in scores if name in best.record.scores},
        versions=surroundings.versions(),
        commit=surroundings.commit(),
    )
    _write(output, record, kitchen)
    return record


class _Kitchen:
    """The rows of a set of runs, and one model that takes the weights of one soup after another."""

    def __init__(self, run: _Run) -> None:
        self._run = run
        self.task, self.selection = _rows(run)
        self.tokenizer = load_tokenizer(run.source)
        self.model = load_trained_model(run.source)
        self.model.to("cuda" if torch.cuda.is_available() else "cpu")
        if isinstance(self.task, QuestionAnswering):
            self.task = infer_task(self.model)  # which knows whether an answer may be empty

    def scores(self, chosen: Sequence[_Run], split: str) -> dict[str, float | None]:
        """Metrics of the soup of these runs, which stays in the model; none if it gives no finite logits."""
        self.model.load_state_dict(averaged_weights(run.weights() for run in chosen))
        settings = self._run.config.run
        rows = self.task.encode(getattr(self.selection, split), self.tokenizer, settings.max_length)
        collator = PaddingCollator(self.tokenizer, self.task.label_dtype, labels_by_token=self.task.labels_by_token)
        predicted = predict(self.model, self.task, rows, collator, settings.eval_batch_size)
        if not predicted.finite:
            return {}
        found = self.task.scores(predicted.rows, rows.labels or ())
        return {name: value if math.isfinite(value) else None for name, value in found.items()}


def _rows(run: _Run) -> tuple[Task, Selection]:
    """Task and rows of a run, which must be those that it was scored on."""
    dataset = dataset_of(run.config)
    selection = selection_of(run.config, dataset)
    found, before = selection.fingerprints(), run.record.data_fingerprints
    same_rows = all(found[name] == before.get(name) for name in ("dev", "test"))
    if not same_rows or list(dataset.label_names) != run.record.label_names:
        raise SoupError(
            f"the rows or labels of {run.config.data.source} are not those that {run.folder} was scored on; put those "
            "back."
        )
    return task_of(dataset.task, dataset.label_names, dataset.metric), selection


def _opened(folders: Sequence[Path]) -> list[_Run]:
    """The runs in these folders, in their order."""
    if len({folder.resolve() for folder in folders}) < len(folders):
        raise SoupError("a run is named twice; name each once.")
    if len(folders) < 2:
        raise SoupError(f"a soup needs two runs or more; got {len(folders)}.")
    runs = [_opened_one(folder) for folder in folders]
    for other in runs[1:]:
        _check_alike(runs[0], other)
    return runs


def _opened_one(folder: Path) -> _Run:
    file = folder / "record.json"
    if not file.is_file():
        raise SoupError(f"{folder} holds no record.json; name the folders of finished runs.")
    record = read_record(file)
    run = _Run(folder, record, validated(RunConfig, record.config, str(file)))
    if record.status != "done":
        raise SoupError(f"the run in {folder} failed; leave it out.")
    if run.dev_score is None:
        raise SoupError(f"the run in {folder} has no validation score; leave it out.")
    if not (folder / "model" / "config.json").is_file():
        raise SoupError(f"{folder} holds no model; a soup needs the weights of every run.")
    return run


def _check_alike(one: _Run, other: _Run) -> None:
    """Refuse runs whose weights do not average, or whose scores do not compare."""
    for same, why in _CONDITIONS:
        left, right = same(one), same(other)
        if left != right:
            raise SoupError(f"{one.folder} and {other.folder} make no soup: {why.format(left, right)}")


def _origin(run: _Run) -> str:
    return f"{run.record.model_name} ({run.record.model_revision[:12]})"


def _drawn_anew(run: _Run) -> str:
    """What `reinit` did to the checkpoint before training; it draws from the run's seed."""
    settings = run.config.recipe.methods.get("reinit")
    return "nothing" if settings is None else f"{dict(settings)} from seed {run.config.seed}"


_CONDITIONS: tuple[tuple[Callable[[_Run], Any], str], ...] = (
    (lambda run: run.record.task, "their tasks are {} and {}."),
    (lambda run: run.record.label_names, "their labels are {} and {}; names and order must agree."),
    (_origin, "they started from {} and {}; a soup needs one checkpoint."),
    (
        lambda run: run.config.head_seed,
        "their heads were drawn from seeds {} and {}; train them with one `--set run.head_seed=N`.",
    ),
    (_drawn_anew, "reinit drew anew {} and {}; runs with it must share it and the seed."),
    (
        lambda run: run.record.data_fingerprints.get("dev"),
        "they were scored on different validation rows; use data with a dev split, or one seed.",
    ),
    (
        lambda run: run.record.data_fingerprints.get("test"),
        "they were scored on different test rows; use data with a test split, or one seed.",
    ),
    (lambda run: run.record.metric, "their scores are {} and {}."),
    (
        lambda run: bool(getattr(load_config(run.source), "allow_empty_answer", False)),
        "a question may have no answer in one of them and not in the other; train them on rows alike.",
    ),
    (lambda run: run.config.run.max_length, "run.max_length is {} and {}; they must read texts alike."),
)


def _ingredient(run: _Run, output: Path, *, kept: bool) -> Ingredient:
    path = Path(os.path.relpath(run.folder.resolve(), output.resolve())).as_posix()
    return Ingredient(run_id=run.record.run_id, path=path, dev_scores=run.record.scores["dev"], kept=kept)


def _check_output(output: Path) -> None:
    if output.exists() and not (output.is_dir() and not any(output.iterdir())):
        raise SoupError(f"--output {output} exists; name a new folder.")
    in_the_way = next((parent for parent in output.parents if parent.exists() and not parent.is_dir()), None)
    if in_the_way is not None:
        raise SoupError(f"--output {output} lies below {in_the_way}, which is a file; name another folder.")


def _write(output: Path, record: SoupRecord, kitchen: _Kitchen) -> None:
    """Model and record, beside the folder first."""
    output = output.resolve()
    aside = output.with_name(f".{output.name}.{os.getpid()}")
    try:
        aside.mkdir(parents=True)
        export_model(kitchen.model, kitchen.tokenizer, aside / "model", soup_card(record))
        write_json(aside / SOUP_FILE, record.model_dump(mode="json"))
        if output.exists():
            output.rmdir()
        os.replace(aside, output)
    finally:
        shutil.rmtree(aside, ignore_errors=True)


def _shown(value: float | None) -> str:
    return "not finite" if value is None else f"{value:.4f}"
