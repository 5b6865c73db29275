"""What a run leaves for others: the plain model with its card."""

import html
import math
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from huggingface_hub import EvalResult, ModelCard, ModelCardData

from steadytune.records import RunRecord, SoupRecord
from steadytune.tasks import MultipleChoice, QuestionAnswering, Task, TokenClassification

_HEADS = {kind.name: kind.model_class for kind in (TokenClassification, MultipleChoice, QuestionAnswering)}
_HUB_TASKS = {
    "AutoModelForSequenceClassification": "text-classification",
    "AutoModelForTokenClassification": "token-classification",
    "AutoModelForMultipleChoice": "multiple-choice",
    "AutoModelForQuestionAnswering": "question-answering",
}
_CARD = """---
{card_data}
---
# {title}

A text model fine-tuned with steadytune. It is a plain Transformers model: load it with
`{model_class}.from_pretrained`; steadytune is not needed.

| | |
|---|---|
{facts}

## Scores

{caution}

| split | rows | {metrics} |
|---|---|{rule}|
{scores}

## Training

{training}
"""


def export_model(model: Any, tokenizer: Any, folder: Path, card: ModelCard) -> None:
    """Save model, tokenizer and card; the folder appears whole or not at all.

    Args:
        model: the plain Hugging Face model.
        tokenizer: its tokenizer.
        folder: where to; one that an interrupted run left there is replaced.
        card: says what the model is.
    """
    aside = folder.with_name(f".{folder.name}.{os.getpid()}")
    shutil.rmtree(aside, ignore_errors=True)
    try:
        model.save_pretrained(aside)
        tokenizer.save_pretrained(aside)
        card.save(aside / "README.md")
        shutil.rmtree(folder, ignore_errors=True)
        os.replace(aside, folder)
    finally:
        shutil.rmtree(aside, ignore_errors=True)


def run_card(record: RunRecord) -> ModelCard:
    """The card of the model of one run.

    Args:
        record: what the run was.
    """
    recipe = record.config["recipe"]
    methods = ", ".join(f"{key} {values}" for key, values in recipe["methods"].items()) or "no method"
    return _card(
        record,
        name=recipe["name"],
        more={"training rows": record.data_rows["train"], "seed": record.config["seed"], "run": record.run_id},
        caution="One run, one seed: a single number says little about a method.",
        training=f"Recipe `{recipe['name']}`: {methods}. {' '.join(record.notices)}",
    )


def soup_card(record: SoupRecord) -> ModelCard:
    """The card of a model whose weights are an average of those of several runs.

    Args:
        record: what the soup is.
    """
    kept = [f"`{one.run_id}`" for one in record.ingredients if one.kept]
    return _card(
        record,
        name="soup",
        more={"head seed": record.head_seed, "runs": len(kept)},
        caution="The validation rows chose these weights, so their scores flatter; the test rows chose nothing."
        if record.rule == "greedy"
        else "One soup: a single number says little about a method.",
        training=f"The equal mean of the weights of {len(kept)} of {len(record.ingredients)} runs from the same "
        f"checkpoint and the same head (Wortsman et al. 2022, {record.rule} soup): {', '.join(kept)}.",
    )


def _card(
    record: RunRecord | SoupRecord, *, name: str, more: Mapping[str, object], caution: str, training: str
) -> ModelCard:
    source = Path(record.config["data"]["source"]).name
    model_class = _HEADS.get(record.task, Task.model_class)
    results = [
        EvalResult(
            task_type=_HUB_TASKS[model_class],
            dataset_type=source,
            dataset_name=source,
            dataset_split=split,
            metric_type=metric,
            metric_value=value,
        )
        for split, scores in record.scores.items()
        for metric, value in scores.items()
        if metric == record.metric and value is not None and math.isfinite(value)
    ]
    data = ModelCardData(
        library_name="transformers",
        pipeline_tag=_HUB_TASKS[model_class],
        model_name=f"{source} {name}",
        eval_results=results,
    )
    metrics = list(next(iter(record.scores.values()), {}))
    facts = {
        "encoder": record.model_name,
        "task": record.task,
        "labels": ", ".join(record.label_names[:20]) + (", …" if len(record.label_names) > 20 else ""),
        **more,
    }
    text = _CARD.format(
        card_data=data.to_yaml(),
        title=data.model_name,
        model_class=model_class,
        facts="\n".join(f"| {key} | {_cell(value)} |" for key, value in facts.items() if value != ""),
        caution=caution,
        metrics=" | ".join(metrics),
        rule="|".join("---" for _ in metrics),
        scores="\n".join(
            f"| {split} | {record.data_rows[split]} | " + " | ".join(_number(scores[m]) for m in metrics) + " |"
            for split, scores in record.scores.items()
        ),
        training=training,
    )
    return ModelCard(text)


def _cell(value: object) -> str:
    return html.escape(str(value), quote=False).replace("|", "\\|").replace("\n", " ")


def _number(value: float | None) -> str:
    return "–" if value is None or not math.isfinite(value) else f"{value:.4f}"
