"""What commands print: progress on standard error, results on standard output."""

import json
import logging
import sys
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

if TYPE_CHECKING:
    from steadytune.training.fit import Progress as Moment
    from steadytune.training.fit import Watch

out = Console(highlight=False)
err = Console(stderr=True, highlight=False)

_PHASES = {"data": "reading and tokenizing data", "evaluate": "evaluating"}


def print_json(value: Any) -> None:
    """Print JSON, one document.

    Args:
        value: plain values.
    """
    print(json.dumps(value, ensure_ascii=False, allow_nan=False))


_LONGEST_NAME = 24  # of a row, that is kept on one line in a narrow window


def table(columns: Sequence[str], rows: Sequence[Sequence[object]], title: str | None = None) -> Table:
    """A table of plain text.

    Args:
        columns: headings.
        rows: cells; printed as they are, without markup.
        title: above it.
    """
    name = None if title is None else Text(title)
    shown = Table(title=name, title_justify="left", box=None, header_style="bold", pad_edge=False)
    for place, column in enumerate(columns):
        names = max((len(str(row[0])) for row in rows), default=0) if place == 0 else 0
        shown.add_column(Text(column), overflow="fold", min_width=min(names, _LONGEST_NAME) or None)
    for row in rows:
        shown.add_row(*(_plain(cell) for cell in row))
    return shown


def _plain(cell: object) -> Text:
    return Text(f"{cell:.4f}" if isinstance(cell, float) else str(cell))


def score_table(scores: Mapping[str, Mapping[str, float | None]], rows: Mapping[str, int]) -> Table:
    """Metrics by split.

    Args:
        scores: by split and metric.
        rows: number of rows by split.
    """
    metrics = list(next(iter(scores.values()), {}))
    cells = [[name, rows[name], *(values[m] for m in metrics)] for name, values in scores.items()]
    return table(["split", "rows", *metrics], cells)


def quiet_libraries() -> None:
    """Send the library's own warnings to standard error and silence the chatter of others."""
    from huggingface_hub.utils import logging as hub
    from transformers.utils import logging as chatter

    hub.set_verbosity_error()  # type: ignore[no-untyped-call]
    chatter.set_verbosity_error()  # type: ignore[no-untyped-call]
    chatter.disable_progress_bar()  # type: ignore[no-untyped-call]
    warnings.filterwarnings("ignore", module=r"(transformers|accelerate|torch)(\.|$)")
    handler = logging.StreamHandler()
    handler.setFormatter(logging.Formatter("steadytune: %(message)s"))
    logger = logging.getLogger("steadytune")
    logger.handlers, logger.propagate = [handler], False


@contextmanager
def watching(*, quiet: bool) -> "Iterator[Watch]":
    """A watcher for one run: a bar on a terminal, a line for every tenth of the way in a log file.

    Args:
        quiet: print nothing.
    """
    if quiet:
        yield lambda moment: None
    elif not err.is_terminal:
        yield _Lines()
    else:
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TextColumn("steps"))
        with Progress(*columns, TimeRemainingColumn(), console=err, transient=False) as bar:
            task = bar.add_task(_PHASES["data"], total=None)

            def show(moment: "Moment") -> None:
                loss = "" if moment.loss is None else f"  loss {moment.loss:.4f}"
                text = _PHASES.get(moment.phase, f"training{loss}")
                bar.update(task, description=text, completed=moment.step, total=moment.total or None)

            yield show


class _Lines:
    """Progress as lines that a log file survives."""

    def __init__(self) -> None:
        self._tenth = -1

    def __call__(self, moment: "Moment") -> None:
        if moment.phase in _PHASES:  # said by the first line of the training, or by an error
            return
        tenth = 10 * moment.step // max(moment.total, 1)
        if tenth > self._tenth:
            self._tenth = tenth
            loss = "" if moment.loss is None else f", loss {moment.loss:.4f}"
            print(f"training: step {moment.step} of {moment.total}{loss}", file=sys.stderr, flush=True)
