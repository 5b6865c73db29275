"""What methods that move word embeddings share: which tokens, the edit, and what is said about it."""

from collections.abc import Mapping

import torch
from torch import Tensor

from steadytune.encoders import Edits, PassOutput
from steadytune.functional import real_tokens, realized_noise, relative_size
from steadytune.methods.contract import MethodError, Step
from steadytune.methods.precision import FAITHFUL


def embedding_of(output: PassOutput) -> Tensor:
    """Where a pass is differentiated: its word embeddings, perturbation included.

    Args:
        output: of the pass.
    """
    return output.embedding


def moved_by(offset: Tensor | None) -> Edits | None:
    """The edit that adds an offset to the word embeddings, in the wider of their dtypes.

    Args:
        offset: what is added; None for nothing.
    """
    if offset is None:
        return None
    return Edits(embedding=lambda states: (states + offset).to(states.dtype))


def check_ids(step: Step, key: str) -> None:
    """Refuse a batch that bypasses the word embeddings.

    Args:
        step: the step.
        key: of the method.
    Raises:
        MethodError: there are no `input_ids`.
    """
    if step.inputs.get("input_ids") is None:
        raise MethodError(f"{key} needs input_ids: it perturbs the word embeddings, which inputs_embeds bypass.")


def real_of(step: Step, embedding: Tensor) -> Tensor:
    """Which tokens of the batch are no padding; see `real_tokens`.

    Args:
        step: the step.
        embedding: of its batch.
    """
    return real_tokens(
        embedding,
        token_ids=step.inputs.get("input_ids"),
        attention_mask=step.inputs.get("attention_mask"),
        padding_id=step.anatomy.padding_id,
    )


def report_offset(step: Step, offset: Tensor, embedding: Tensor, real: Tensor) -> None:
    """Telemetry: how large a perturbation is beside the embeddings, and how many examples have none.

    Args:
        step: the step.
        offset: the perturbation.
        embedding: what it is added to.
        real: False on padding.
    """
    step.report("relative_size", relative_size(offset, embedding, real))
    step.report("zero_perturbation_fraction", (offset == 0).flatten(1).all(dim=1).float().mean())


def check_precision(setting: str, embedding: Tensor, offset: Tensor) -> None:
    """Refuse a perturbation that 16-bit embeddings round away; it waits for the device.

    Args:
        setting: that sets its size, for the message.
        embedding: what it is added to.
        offset: the perturbation.
    Raises:
        MethodError: with what is left of it.
    """
    if embedding.dtype not in (torch.bfloat16, torch.float16) or not bool(offset.any()):
        return
    correlation, moved = (float(value) for value in realized_noise(embedding.detach(), offset, embedding.dtype))
    if correlation < FAITHFUL:
        name = str(embedding.dtype).removeprefix("torch.")
        raise MethodError(
            f"{setting} is rounded away by the {name} embeddings (correlation of intended and effective perturbation "
            f"{correlation:.2f}, {moved:.1%} of the entries move); use float32 weights, with autocast if need be."
        )


def said_of_still_examples(key: str, telemetry: Mapping[str, float]) -> list[str]:
    """A sentence where examples went without a perturbation.

    Args:
        key: of the method.
        telemetry: means by name.
    """
    share = telemetry.get("zero_perturbation_fraction", 0.0)
    if share <= 0:
        return []
    return [f"{key}: the gradient of {share:.1%} of the examples was 0 or not finite, so they were not perturbed."]
