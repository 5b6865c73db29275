"""What a run leaves for others: the plain model with its card."""

import html
import math
import os
import shutil
from pathlib import Path
from typing import Any

from huggingface_hub import EvalResult, ModelCard, ModelCardData

from steadytune.records import RunRecord

_CARD = """---
{card_data}
---
# {title}

A text model fine-tuned with steadytune. It is a plain Transformers model: load it with
`AutoModelForSequenceClassification.from_pretrained`; steadytune is not needed.

| | |
|---|---|
{facts}

## Scores

One run, one seed: a single number says little about a method.

| split | rows | {metrics} |
|---|---|{rule}|
{scores}

## Training

Recipe `{recipe}`: {methods}. {notices}
"""


def export_model(model: Any, tokenizer: Any, folder: Path, record: RunRecord) -> None:
    """Save model, tokenizer and card; the folder appears whole or not at all.

    Args:
        model: the plain Hugging Face model.
        tokenizer: its tokenizer.
        folder: where to; one that an interrupted run left there is replaced.
        record: what the run was.
    """
    aside = folder.with_name(f".{folder.name}.{os.getpid()}")
    shutil.rmtree(aside, ignore_errors=True)
    try:
        model.save_pretrained(aside)
        tokenizer.save_pretrained(aside)
        model_card(record).save(aside / "README.md")
        shutil.rmtree(folder, ignore_errors=True)
        os.replace(aside, folder)
    finally:
        shutil.rmtree(aside, ignore_errors=True)


def model_card(record: RunRecord) -> ModelCard:
    """The card of a trained model.

    Args:
        record: what the run was.
    """
    config, source = record.config, record.config["data"]["source"]
    name = Path(source).name
    results = [
        EvalResult(
            task_type="text-classification",
            dataset_type=name,
            dataset_name=name,
            dataset_split=split,
            metric_type=metric,
            metric_value=value,
        )
        for split, scores in record.scores.items()
        for metric, value in scores.items()
        if metric == record.metric and value is not None and math.isfinite(value)
    ]
    data = ModelCardData(
        library_name="transformers", model_name=f"{name} {config['recipe']['name']}", eval_results=results
    )
    metrics = list(next(iter(record.scores.values()), {}))
    facts = {
        "encoder": record.model_name,
        "task": record.task,
        "labels": ", ".join(record.label_names[:20]) + (", …" if len(record.label_names) > 20 else ""),
        "training rows": record.data_rows["train"],
        "seed": config["seed"],
        "run": record.run_id,
    }
    text = _CARD.format(
        card_data=data.to_yaml(),
        title=data.model_name,
        facts="\n".join(f"| {key} | {_cell(value)} |" for key, value in facts.items() if value != ""),
        metrics=" | ".join(metrics),
        rule="|".join("---" for _ in metrics),
        scores="\n".join(
            f"| {split} | {record.data_rows[split]} | " + " | ".join(_number(scores[m]) for m in metrics) + " |"
            for split, scores in record.scores.items()
        ),
        recipe=config["recipe"]["name"],
        methods=", ".join(f"{key} {values}" for key, values in config["recipe"]["methods"].items()) or "no method",
        notices=" ".join(record.notices),
    )
    return ModelCard(text)


def _cell(value: object) -> str:
    return html.escape(str(value), quote=False).replace("|", "\\|").replace("\n", " ")


def _number(value: float | None) -> str:
    return "–" if value is None or not math.isfinite(value) else f"{value:.4f}"
