"""Two regularizers in a bare training loop, on the bundled sample: the added lines are marked."""

import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from steadytune import SCL, HyPe, RegularizedModel
from steadytune.data import load_dataset
from steadytune.encoders.bundled import bundled_encoder

torch.manual_seed(0)
data = load_dataset("sample")
train, test = data.splits["train"], data.splits["test"]
tokenizer = AutoTokenizer.from_pretrained(bundled_encoder())
model = AutoModelForSequenceClassification.from_pretrained(bundled_encoder(), num_labels=len(data.label_names))

wrapped = RegularizedModel(model, methods=[HyPe(noise_std=1e-2), SCL(weight=0.5)])  # added
optimizer = torch.optim.AdamW(wrapped.parameter_groups(lr=1e-4))
wrapped.attach(optimizer)  # added

wrapped.train()
for epoch in range(2):
    for rows in torch.randperm(len(train)).split(16):
        batch = tokenizer([train.texts[i] for i in rows], padding=True, return_tensors="pt")
        out = wrapped(**batch, labels=torch.tensor([train.labels[i] for i in rows]))
        out.loss.backward()
        wrapped.clip_grad_norm_(1.0)
        optimizer.step()
        optimizer.zero_grad()
    print(f"epoch {epoch + 1}: label loss {out.task_loss:.3f}, scl {out.terms['scl']:.3f}")

wrapped.eval()
with torch.inference_mode():
    logits = wrapped(**tokenizer(list(test.texts), padding=True, return_tensors="pt")).logits
print(f"test accuracy {(logits.argmax(-1) == torch.tensor(test.labels)).float().mean():.3f}")
wrapped.save_pretrained("out/bare_loop")  # plain: loads without steadytune
wrapped.close()
