"""What `predict` leaves: rows of a file, or lines to read."""

import csv
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from steadytune.cli.output import out

if TYPE_CHECKING:
    from steadytune.data import Examples

Answer = Mapping[str, Any]
_SHOWN = 3  # classes of a text


def answers_of(rows: "Examples", decoded: Sequence[Answer]) -> list[dict[str, Any]]:
    """Every row with its answer, as plain values.

    Args:
        rows: that were asked.
        decoded: what the task makes of the model's predictions.
    """
    pairs = rows.choices or rows.pairs or (None,) * len(rows)
    return [
        {"id": row_id, **_asked(text, pair, answer)}
        for row_id, text, pair, answer in zip(rows.ids, rows.texts, pairs, decoded, strict=True)
    ]


def _asked(text: Any, pair: Any, answer: Answer) -> dict[str, Any]:
    """What was asked, and the answer in its words."""
    if "tags" in answer:
        entities = [
            {**one, "text": " ".join(text[one["first_word"] : one["last_word"] + 1])}
            for one in answer.get("entities", ())
        ]
        return {"tokens": list(text), **answer, **({"entities": entities} if "entities" in answer else {})}
    if "choice" in answer:
        return {"text": text, "answer": pair[answer["choice"]], **answer}
    if "answer" in answer:
        return {"text": text, "question": pair, **answer}
    return {"text": text, **answer}


def write_answers(path: Path, answers: Sequence[Answer]) -> None:
    """JSON Lines, or CSV with one column per probability and lists in JSON; written aside and renamed.

    Args:
        path: its ending says which.
        answers: from `answers_of`.
    """
    aside = path.with_name(f".{path.name}.part")
    try:
        with aside.open("w", encoding="utf-8", newline="") as file:
            if path.suffix == ".jsonl":
                file.writelines(json.dumps(answer, ensure_ascii=False) + "\n" for answer in answers)
            else:
                flat = [_flat(answer) for answer in answers]
                writer = csv.DictWriter(file, fieldnames=list(flat[0]) if flat else ["id", "text"])
                writer.writeheader()
                writer.writerows(flat)
        aside.replace(path)
    finally:
        aside.unlink(missing_ok=True)


def _flat(answer: Answer) -> dict[str, Any]:
    cells: dict[str, Any] = {}
    for name, value in answer.items():
        if isinstance(value, Mapping):
            cells |= {f"probability_{label}": share for label, share in value.items()}
        else:
            cells[name] = json.dumps(value, ensure_ascii=False) if isinstance(value, list) else value
    return cells


def show_answers(answers: Sequence[Answer]) -> None:
    """Print each text and, below it, what the model says of it.

    Args:
        answers: from `answers_of`.
    """
    for answer in answers:
        head = answer["question"] if "question" in answer else answer.get("text") or " ".join(answer.get("tokens", ()))
        out.print(head, markup=False, style="bold", soft_wrap=True)
        out.print(f"  {_line(answer)}", markup=False, soft_wrap=True)


def _line(answer: Answer) -> str:
    """What the model says of one text."""
    if "value" in answer:
        return f"{answer['value']:.3f}"
    if "entities" in answer:
        return "   ".join(f"{one['label']}: {one['text']}" for one in answer["entities"]) or "no entity"
    if "tags" in answer:
        return " ".join(f"{word}/{tag}" for word, tag in zip(answer["tokens"], answer["tags"], strict=True))
    if "question" in answer:
        return answer["answer"] or "no answer"
    if "choice" in answer:
        return f"{answer['answer']} {answer['probabilities'][answer['choice']]:.1%}"
    best = sorted(answer["probabilities"].items(), key=lambda item: -item[1])
    if "labels" in answer:
        found = _shares(best[: len(answer["labels"])])
        return found or f"no label; nearest {_shares(best[:1])}"
    return _shares(best[:_SHOWN])


def _shares(classes: Sequence[tuple[str, float]]) -> str:
    return "   ".join(f"{label} {share:.1%}" for label, share in classes)
