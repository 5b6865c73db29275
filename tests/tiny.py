"""Tiny random models of every supported family, and batches for them; nothing is downloaded."""

from typing import Any

import torch
import transformers
from torch import Tensor, nn

FAMILIES = (
    "bert",
    "roberta",
    "xlm-roberta",
    "distilbert",
    "electra",
    "albert",
    "deberta-v2",
    "deberta-v2-conv",
    "modernbert",
    "mpnet",
    "xlnet",
)
"""Every family; "deberta-v2-conv" has the convolution that some released checkpoints have."""

WIDTH, HEADS, TOKENS, VOCABULARY = 16, 2, 9, 40
PAD, CLS = 1, 2


def _configuration(family: str, depth: int, dropout: float) -> transformers.PretrainedConfig:
    shape: dict[str, Any] = {
        "vocab_size": VOCABULARY,
        "hidden_size": WIDTH,
        "num_hidden_layers": depth,
        "num_attention_heads": HEADS,
        "intermediate_size": 2 * WIDTH,
        "pad_token_id": PAD,
    }
    usual = {"hidden_dropout_prob": dropout, "attention_probs_dropout_prob": dropout, "max_position_embeddings": 64}
    match family:
        case "bert":
            return transformers.BertConfig(**shape, **usual)
        case "roberta":
            return transformers.RobertaConfig(**shape, **usual)
        case "xlm-roberta":
            return transformers.XLMRobertaConfig(**shape, **usual)
        case "electra":
            return transformers.ElectraConfig(**shape, **usual, embedding_size=WIDTH // 2)
        case "albert":
            return transformers.AlbertConfig(
                **shape, **usual, embedding_size=WIDTH // 2, classifier_dropout_prob=dropout
            )
        case "mpnet":
            return transformers.MPNetConfig(**shape, **usual)
        case "distilbert":
            return transformers.DistilBertConfig(
                vocab_size=VOCABULARY,
                dim=WIDTH,
                n_layers=depth,
                n_heads=HEADS,
                hidden_dim=2 * WIDTH,
                pad_token_id=PAD,
                dropout=dropout,
                attention_dropout=dropout,
                seq_classif_dropout=dropout,
                max_position_embeddings=64,
            )
        case "deberta-v2" | "deberta-v2-conv":  # relative attention as in every released checkpoint
            return transformers.DebertaV2Config(
                **shape,
                **usual,
                relative_attention=True,
                position_buckets=4,
                max_relative_positions=-1,
                pos_att_type=["p2c", "c2p"],
                norm_rel_ebd="layer_norm",
                share_att_key=True,
                position_biased_input=False,
                pooler_dropout=dropout,
                pooler_hidden_size=WIDTH,
                type_vocab_size=0,
                **({"conv_kernel_size": 3, "conv_act": "gelu"} if family.endswith("conv") else {}),
            )
        case "modernbert":  # local and global layers alternate
            return transformers.ModernBertConfig(
                **shape,
                max_position_embeddings=64,
                embedding_dropout=dropout,
                mlp_dropout=dropout,
                attention_dropout=dropout,
                classifier_dropout=dropout,
                local_attention=4,
                global_attn_every_n_layers=2,
                cls_token_id=CLS,
                bos_token_id=CLS,
                eos_token_id=3,
                sep_token_id=3,
            )
        case "xlnet":
            return transformers.XLNetConfig(
                vocab_size=VOCABULARY,
                d_model=WIDTH,
                n_layer=depth,
                n_head=HEADS,
                d_inner=2 * WIDTH,
                dropout=dropout,
                summary_last_dropout=dropout,
                pad_token_id=PAD,
                summary_type="last",
            )
    raise ValueError(family)


def tiny_model(
    family: str,
    *,
    num_labels: int = 3,
    dropout: float = 0.1,
    problem_type: str | None = None,
    depth: int = 3,
    dtype: torch.dtype = torch.float32,
    seed: int = 0,
    attention: str | None = None,
) -> nn.Module:
    """A random model for sequence classification, in training mode; the same weights for the same arguments.

    Its weights are larger than a fresh model's, so that layers and dropout make a difference in every test.
    """
    config = _configuration(family, depth, dropout)
    config.num_labels = num_labels
    config.problem_type = problem_type
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = transformers.AutoModelForSequenceClassification.from_config(
            config, **({} if attention is None else {"attn_implementation": attention})
        )
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(0.15 * torch.randn_like(parameter))
    return model.to(dtype).train()


def tiny_batch(
    family: str,
    *,
    rows: int = 4,
    tokens: int = TOKENS,
    regression: bool = False,
    classes: int = 3,
    seed: int = 0,
    padded: bool = True,
) -> dict[str, Tensor]:
    """A batch with padding (on the left for xlnet), rows of several lengths and every class."""
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(5, VOCABULARY, (rows, tokens), generator=generator)
    mask = torch.ones_like(ids)
    left = family == "xlnet"
    if not left:
        ids[:, 0] = CLS
    for row in range(rows):
        empty = (row % 4) if padded else 0
        if empty:
            where = slice(0, empty) if left else slice(tokens - empty, tokens)
            mask[row, where], ids[row, where] = 0, PAD
    labels = torch.arange(rows) % classes
    labels = labels[torch.randperm(rows, generator=generator)]
    if regression:
        labels = torch.randn(rows, generator=generator)
    return {"input_ids": ids, "attention_mask": mask, "labels": labels}


TASKS = (
    "classification",
    "regression",
    "multi_label",
    "token_classification",
    "multiple_choice",
    "question_answering",
)
"""Every task of fine-tuning."""

_HEADS = {
    "token_classification": "AutoModelForTokenClassification",
    "multiple_choice": "AutoModelForMultipleChoice",
    "question_answering": "AutoModelForQuestionAnswering",
}


def tiny_task_model(
    task: str, family: str = "bert", *, dropout: float = 0.1, dtype: torch.dtype = torch.float32
) -> Any:
    """A random model with the head of a task, in training mode; the same weights for the same arguments."""
    if task not in _HEADS:
        problem = {"regression": "regression", "multi_label": "multi_label_classification"}.get(task)
        labels = 1 if task == "regression" else 3
        return tiny_model(family, num_labels=labels, problem_type=problem, dropout=dropout, dtype=dtype)
    config = _configuration(family, 3, dropout)
    config.num_labels = {"token_classification": 3, "multiple_choice": 1, "question_answering": 2}[task]
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model: Any = getattr(transformers, _HEADS[task]).from_config(config)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(0.15 * torch.randn_like(parameter))
    return model.to(dtype).train()


def tiny_task_batch(task: str, family: str = "bert", *, rows: int = 4, seed: int = 0) -> dict[str, Tensor]:
    """A padded batch with the labels of a task: of a multiple choice, two choices per row."""
    if task in ("classification", "regression"):
        return tiny_batch(family, rows=rows, regression=task == "regression", seed=seed)
    generator = torch.Generator().manual_seed(seed + 1)
    if task == "multiple_choice":
        flat = tiny_batch(family, rows=2 * rows, seed=seed)
        batch = {name: flat[name].unflatten(0, (rows, 2)) for name in ("input_ids", "attention_mask")}
        return {**batch, "labels": torch.arange(rows) % 2}
    batch = inputs_of(tiny_batch(family, rows=rows, seed=seed))
    mask = batch["attention_mask"]
    if task == "multi_label":
        labels = torch.randint(0, 2, (rows, 3), generator=generator).float()
    elif task == "token_classification":
        labels = torch.randint(0, 3, mask.shape, generator=generator).masked_fill(mask == 0, -100)
        labels[:, 0] = -100
    else:
        real = mask.sum(dim=1)
        start = (torch.rand(rows, generator=generator) * real).long()
        labels = torch.stack([start, torch.minimum(start + 1, real - 1)], dim=1)
    return {**batch, "labels": labels}


def inputs_of(batch: dict[str, Tensor]) -> dict[str, Tensor]:
    """The batch without its labels."""
    return {name: value for name, value in batch.items() if name != "labels"}


def rows_of(batch: dict[str, Tensor], sizes: list[int]) -> list[dict[str, Tensor]]:
    """The batch in consecutive parts of these sizes."""
    parts = {name: value.split(sizes) for name, value in batch.items()}
    return [{name: part[i] for name, part in parts.items()} for i in range(len(sizes))]


def gradients(model: nn.Module) -> dict[str, Tensor]:
    """A copy of every gradient by parameter name; a missing one is left out."""
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
