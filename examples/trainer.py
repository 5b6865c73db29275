"""Two regularizers in a Hugging Face Trainer script: one class and one argument differ from the plain script."""

from datasets import Dataset
from transformers import AutoModelForSequenceClassification, AutoTokenizer, DataCollatorWithPadding, TrainingArguments

from steadytune import SCL, HyPe, RegularizedTrainer
from steadytune.data import load_dataset
from steadytune.encoders.bundled import bundled_encoder

data = load_dataset("sample")
tokenizer = AutoTokenizer.from_pretrained(bundled_encoder())
model = AutoModelForSequenceClassification.from_pretrained(bundled_encoder(), num_labels=len(data.label_names))
splits = {
    name: Dataset.from_dict({**tokenizer(list(rows.texts)), "labels": list(rows.labels or ())})
    for name, rows in data.splits.items()
}

trainer = RegularizedTrainer(
    model=model,
    args=TrainingArguments("out/trainer", num_train_epochs=2, learning_rate=1e-4, save_strategy="no", logging_steps=15),
    train_dataset=splits["train"],
    eval_dataset=splits["test"],
    data_collator=DataCollatorWithPadding(tokenizer),
    compute_metrics=lambda out: {"accuracy": float((out.predictions.argmax(-1) == out.label_ids).mean())},
    methods=[HyPe(noise_std=1e-2), SCL(weight=0.5)],
)
trainer.train()
print(trainer.evaluate()["eval_accuracy"])
