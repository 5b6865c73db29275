"""The model card of a pre-training run."""

import html

from huggingface_hub import ModelCard, ModelCardData

from steadytune.records import PretrainRecord

_CARD = """---
{card_data}
---
# {title}

A text encoder trained with steadytune to guess masked tokens. It is a plain Transformers model: load it with
`AutoModelForMaskedLM.from_pretrained`, or fine-tune it with any head; steadytune is not needed.

| | |
|---|---|
{facts}

## Scores

Without dropout, on {places} masked places of {sequences} sequences that it was not trained on. One run, one seed.

| {metrics} |
|{rule}|
| {scores} |

## Training

Recipe `{recipe}`: {methods}. {notices}
"""


def pretraining_card(record: PretrainRecord) -> ModelCard:
    """The card of the model of one pre-training run.

    Args:
        record: what the run was.
    """
    recipe, run = record.config["recipe"], record.config["run"]
    scores, train, dev = record.scores["dev"], record.data["train"], record.data["dev"]
    title = f"{record.model_name} {recipe['name']}"
    facts = {
        "began with": record.model_name,
        "parameters": f"{record.parameters:,}",
        "tokens of the texts": f"{train.tokens:,}",
        "tokens trained on": f"{record.cost.tokens:,}",
        "steps": f"{record.cost.optimizer_steps:,}",
        "sequence length": run["max_length"],
        "seed": record.config["seed"],
        "run": record.run_id,
    }
    data = ModelCardData(library_name="transformers", pipeline_tag="fill-mask", model_name=title)
    text = _CARD.format(
        card_data=data.to_yaml(),
        title=_cell(title),
        facts="\n".join(f"| {name} | {_cell(value)} |" for name, value in facts.items()),
        places=dev.masked_places,
        sequences=dev.sequences,
        metrics=" | ".join(scores),
        rule="|".join("---" for _ in scores),
        scores=" | ".join("–" if value is None else f"{value:.4f}" for value in scores.values()),
        recipe=recipe["name"],
        methods=", ".join(f"{key} {values}" for key, values in recipe["methods"].items()) or "no method",
        notices=" ".join(record.notices),
    )
    return ModelCard(text)


def _cell(value: object) -> str:
    return html.escape(str(value), quote=False).replace("|", "\\|").replace("\n", " ")
