"""The same rows and settings through the stock Hugging Face Trainer, beside a run of `steadytune train --recipe plain`.

    python benchmarks/stock_trainer.py runs/plain/run.yaml

Only the rows come from steadytune; model, batches, loss and loop are those of a plain script.
"""

import argparse
import json
import math
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from datasets import Dataset
from transformers import (
    AutoModelForSequenceClassification,
    AutoTokenizer,
    DataCollatorWithPadding,
    Trainer,
    TrainingArguments,
    set_seed,
)
from transformers.utils import logging

from steadytune.recipes import load_run
from steadytune.training.loading import locate_model
from steadytune.training.prepare import rows_of, task_of


def main() -> None:
    """Train, score, print one JSON line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("run", type=Path)
    parser.add_argument("--seed", type=int)
    options = parser.parse_args()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    config = load_run(options.run)
    seed = config.seed if options.seed is None else options.seed
    run = config.run
    dataset, chosen = rows_of(config)
    task = task_of(dataset.task, dataset.label_names, dataset.metric)
    place = locate_model(config.model).place
    tokenizer = AutoTokenizer.from_pretrained(place)
    set_seed(seed)
    model = AutoModelForSequenceClassification.from_pretrained(place, **task.head_config())
    splits = {}
    for name in ("train", "dev", "test"):
        rows = getattr(chosen, name)
        texts = (list(rows.texts), list(rows.pairs)) if rows.pairs is not None else (list(rows.texts),)
        tokens = tokenizer(*texts, truncation=True, max_length=run.max_length)
        splits[name] = Dataset.from_dict({**tokens, "labels": list(rows.labels)})
    per_epoch = math.ceil(len(chosen.train) / (run.batch_size * run.accumulation_steps))
    with tempfile.TemporaryDirectory() as folder:
        trainer = Trainer(
            model=model,
            args=TrainingArguments(
                output_dir=folder,
                per_device_train_batch_size=run.batch_size,
                gradient_accumulation_steps=run.accumulation_steps,
                bf16=run.precision == "bfloat16",
                per_device_eval_batch_size=run.eval_batch_size,
                max_steps=max(math.ceil(run.epochs * per_epoch), run.min_steps),
                learning_rate=config.learning_rate,
                lr_scheduler_type="linear",
                warmup_steps=run.warmup_fraction,
                weight_decay=run.weight_decay,
                max_grad_norm=run.max_grad_norm,
                save_strategy="no",
                seed=seed,
                report_to="none",
                disable_tqdm=True,
                use_cpu=not torch.cuda.is_available(),
            ),
            train_dataset=splits["train"],
            data_collator=DataCollatorWithPadding(tokenizer),
        )
        start = time.perf_counter()
        trainer.train()
        seconds = time.perf_counter() - start
        scores = {}
        for name in ("dev", "test"):
            out = trainer.predict(splits[name])
            scores[name] = task.scores(np.asarray(out.predictions), np.asarray(out.label_ids))[task.metric]
    print(json.dumps({"seed": seed, "metric": task.metric, "scores": scores, "train_seconds": round(seconds, 1)}))


if __name__ == "__main__":
    main()
