"""Passes: run a model once, or its upper layers again, and keep what the sites recorded."""

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.func import functional_call

from steadytune.encoders.families import SiteUnavailable
from steadytune.encoders.randomness import RandomState, borrowed_stream
from steadytune.encoders.sites import Edits, Recording, Sites, first_tensor

VectorSource = Literal["cls", "label_input"]


@dataclass(frozen=True)
class PassOutput:
    """What one pass computed.

    Attributes:
        logits: the model's scores, one row per item; None in a resumed pass.
        record: values at the sites.
        start: the random state that the pass started from.
        sentence_token: position of the token that the head reads.
    """

    logits: Tensor | None
    record: Recording
    start: RandomState
    sentence_token: int

    @property
    def hidden(self) -> Mapping[int, Tensor]:
        """By layer, the states that entered it; the largest key is the output of the last layer."""
        return self.record.hidden

    @property
    def embedding(self) -> Tensor:
        """Word-embedding output (batch, tokens, embedding dim)."""
        assert self.record.embedding is not None
        return self.record.embedding

    def vector(self, source: VectorSource = "cls") -> Tensor:
        """One vector per example (batch, dim).

        Args:
            source: "cls", the encoder's final state of the token that the head reads, before any pooler; or
                "label_input", the vector that enters the linear map to the labels, after the head's dropout.
        """
        if source == "cls":
            assert self.record.last is not None
            return self.record.last[:, self.sentence_token]
        assert self.record.pooled is not None
        return self.record.pooled


class PassRunner:
    """Runs passes of one model.

    Args:
        model: the Hugging Face model.
        sites: the hooks on it.
        scores: what to take from the model's output as its scores.
        head_reads: see `Sites.active`.
    """

    def __init__(
        self,
        model: nn.Module,
        sites: Sites,
        *,
        scores: Callable[[Any], Tensor] = lambda output: output.logits,
        head_reads: Tensor | None = None,
    ) -> None:
        self._model = model
        self._sites = sites
        self._scores = scores
        self._head_reads = head_reads

    def run(
        self,
        inputs: Mapping[str, Any],
        edits: Sequence[Edits] = (),
        *,
        start: RandomState | int | None = None,
        keep_random_state_at: frozenset[int] = frozenset(),
        leaf_embedding: bool = False,
        autocast: AbstractContextManager[Any] | None = None,
    ) -> PassOutput:
        """One forward pass.

        Args:
            inputs: the model's keyword arguments, without labels.
            edits: what to change at the sites.
            start: replay this random state or seed and leave the main stream alone; None draws from the main stream.
            keep_random_state_at: layers at which a later pass will resume.
            leaf_embedding: see `Sites.active`.
            autocast: context for the forward computation.
        """
        device = next(self._model.parameters()).device
        with borrowed_stream(device, start), autocast or nullcontext():
            begin = RandomState.capture(device)
            with self._sites.active(
                edits,
                keep_random_state_at=keep_random_state_at,
                leaf_embedding=leaf_embedding,
                head_reads=self._head_reads,
            ) as record:
                record.weights = _edited_weights(self._model, edits)
                output = _with_weights(self._model, record.weights, lambda: self._model(**inputs))
        return PassOutput(self._scores(output), record, begin, self._sites.anatomy.sentence_token)

    def resume(
        self,
        base: PassOutput,
        layer: int,
        hidden: Tensor,
        edits: Sequence[Edits] = (),
        *,
        start: RandomState | int | None,
        autocast: AbstractContextManager[Any] | None = None,
    ) -> PassOutput:
        """The layers from `layer` on, once more, with other states at its entrance.

        Args:
            base: the pass whose layer arguments and weights are used again.
            layer: first layer to run.
            hidden: states (batch, tokens, dim) that enter it, edits included.
            edits: what to change above `layer`.
            start: random state to replay (that of `base` at `layer` gives the same dropout) or a seed.
            autocast: context for the forward computation.
        Returns:
            States above `layer`; no logits.
        Raises:
            SiteUnavailable: the family mixes something in above this layer, outside the layers.
        """
        parts = self._sites.anatomy
        if not parts.first_resume <= layer < parts.depth:
            raise SiteUnavailable(
                f"a pass of this {parts.family.name} can be resumed at layers {parts.first_resume} to "
                f"{parts.depth - 1}; got {layer}."
            )
        with borrowed_stream(hidden.device, start), autocast or nullcontext():
            begin = RandomState.capture(hidden.device)
            with self._sites.active(edits, resume_at=layer) as record:
                record.weights = base.record.weights
                _with_weights(self._model, record.weights, lambda: self._upper_layers(base, layer, hidden))
        return PassOutput(None, record, begin, parts.sentence_token)

    def _upper_layers(self, base: PassOutput, layer: int, hidden: Tensor) -> None:
        parts = self._sites.anatomy
        states = hidden if parts.family.batch_first else hidden.transpose(0, 1)
        for index in range(layer, parts.depth):
            module, args, kwargs = base.record.layer_calls[index]
            states = first_tensor(module(states, *args, **kwargs))
        if parts.final_norm is not None:
            parts.final_norm(states)


class _Within(nn.Module):
    """Runs something while the parameters of a model are exchanged."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, run: Callable[[], Any]) -> Any:
        return run()


def _with_weights(model: nn.Module, weights: Mapping[str, Tensor], run: Callable[[], Any]) -> Any:
    """What `run` gives while the model has these weights; tied parameters follow each other."""
    if not weights:
        return run()
    return functional_call(_Within(model), {f"model.{name}": value for name, value in weights.items()}, (run,))


def _edited_weights(model: nn.Module, edits: Sequence[Edits]) -> dict[str, Tensor]:
    """The parameters that a pass uses in place of the model's own."""
    wanted = [edit.weights for edit in edits if edit.weights is not None]
    changed: dict[str, Tensor] = {}
    for name, parameter in model.named_parameters() if wanted else ():
        value: Tensor = parameter
        for edit in wanted:
            value = edit(name, value)
        if value is not parameter:
            changed[name] = value
    return changed


def ambient_autocast(device: torch.device) -> tuple[AbstractContextManager[Any], torch.dtype | None]:
    """The autocast setting in force, as a context that can be entered again, and its dtype (None: off).

    Args:
        device: where the model runs.
    """
    if not torch.is_autocast_enabled(device.type):
        return nullcontext(), None
    dtype = torch.get_autocast_dtype(device.type)
    return torch.autocast(device.type, dtype=dtype), dtype
