"""Sites: places in a forward pass where a value can be edited, then recorded, without touching model code.

Hooks are installed once and do nothing while no pass is active. What belongs to one pass travels with it: layer hooks
run outside gradient checkpointing and read the active pass; the hook inside a layer, which checkpointing runs again,
reads a keyword argument that the checkpoint has captured.
"""

import weakref
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn

from steadytune.encoders.families import Anatomy, batch_first, describe
from steadytune.encoders.randomness import RandomState

TensorEdit = Callable[[Tensor], Tensor]
LayerEdit = Callable[[int, Tensor], Tensor]
AttentionEdit = Callable[[int, Tensor, Tensor | None], Tensor | None]
MaskEdit = Callable[[int, Tensor], Tensor]
WeightEdit = Callable[[str, Tensor], Tensor]

_INSIDE = "steadytune_inside"
_wrapped: "weakref.WeakSet[nn.Module]" = weakref.WeakSet()


@dataclass(frozen=True, kw_only=True)
class Edits:
    """What to change in one pass; every entry maps a value to its replacement.

    Attributes:
        embedding: word-embedding output (batch, tokens, embedding dim).
        hidden: layer index and the states that enter that layer (batch, tokens, dim).
        inside: layer index and the states that enter its feed-forward block (batch, tokens, dim).
        attention: layer index, states that the layer's attention reads (after its own norm, if any), its attention
            mask; gives an additive bias (batch, 1 or heads, tokens, tokens) or None.
        mask: layer index and the attention mask that it is given (batch, heads or 1, tokens or 1, tokens), boolean or
            additive; not called where the model gives none, because nothing is padded.
        pooled: vector that enters the linear map to the labels (batch, dim).
        weights: name and value of a parameter; gives the value that this pass uses in its place.
    """

    embedding: TensorEdit | None = None
    hidden: LayerEdit | None = None
    inside: LayerEdit | None = None
    attention: AttentionEdit | None = None
    mask: MaskEdit | None = None
    pooled: TensorEdit | None = None
    weights: WeightEdit | None = None


@dataclass
class Recording:
    """What one pass left behind; states are exactly those that the model used.

    Attributes:
        embedding: word-embedding output.
        hidden: by layer, the states that entered it; the last key is what leaves the last layer, after a final norm if
            there is one.
        last: the encoder's output states, after a final norm if there is one.
        pooled: the vector that entered the linear map to the labels.
        layer_calls: by layer, module and remaining arguments, for a resumed pass.
        random_states: by layer, the random state at its entrance, where asked for.
        weights: by name, the parameters that the pass used in place of the model's own.
    """

    embedding: Tensor | None = None
    hidden: dict[int, Tensor] = field(default_factory=dict)
    last: Tensor | None = None
    pooled: Tensor | None = None
    layer_calls: dict[int, tuple[nn.Module, tuple[Any, ...], dict[str, Any]]] = field(default_factory=dict)
    random_states: dict[int, RandomState] = field(default_factory=dict)
    weights: dict[str, Tensor] = field(default_factory=dict)


@dataclass
class _Active:
    edits: Sequence[Edits]
    record: Recording
    keep_random_state_at: frozenset[int]
    leaf_embedding: bool
    resume_at: int | None
    head_reads: Tensor | None
    next_layer: int


class _Hook:
    """A hook that a copied or pickled model keeps only as a no-op."""

    def __init__(self, action: Callable[..., Any] | None) -> None:
        self._action = action

    def __call__(self, *args: Any) -> Any:
        return None if self._action is None else self._action(*args)

    def __deepcopy__(self, memo: dict[int, Any]) -> "_Hook":
        return _Hook(None)

    def __reduce__(self) -> tuple[type["_Hook"], tuple[None]]:
        return _Hook, (None,)


class Sites:
    """The hooks on one model.

    Args:
        model: a Hugging Face model; it must not be wrapped already.
    Raises:
        RuntimeError: another wrapper is active on this model.
        UnknownFamily: its family is not supported.
    """

    def __init__(self, model: nn.Module) -> None:
        if model in _wrapped:
            raise RuntimeError("this model is already wrapped; call close() on its RegularizedModel first.")
        self.anatomy: Anatomy = describe(model)
        self._active: _Active | None = None
        self._inside: tuple[int, Sequence[LayerEdit]] | None = None
        self._patched: list[tuple[nn.Module, str]] = []
        self._model = weakref.ref(model)
        self._handles = self._install()
        _wrapped.add(model)

    def close(self) -> None:
        """Remove every hook; safe to call twice."""
        for handle in self._handles:
            handle.remove()
        self._handles = []
        model = self._model()
        if model is not None:
            _wrapped.discard(model)

    @contextmanager
    def active(
        self,
        edits: Sequence[Edits] = (),
        *,
        keep_random_state_at: frozenset[int] = frozenset(),
        leaf_embedding: bool = False,
        resume_at: int | None = None,
        head_reads: Tensor | None = None,
    ) -> Iterator[Recording]:
        """Edit and record while the block runs.

        Args:
            edits: applied in this order at each site.
            keep_random_state_at: layers at whose entrance the random state is recorded.
            leaf_embedding: make the word-embedding output a leaf that requires a gradient if it does not, so that
                a gradient with respect to it exists under a frozen table.
            resume_at: the first layer that will be called, with an input that is edited already; None for a whole
                pass.
            head_reads: (batch, tokens), true at the positions whose states the head is given, as one row; None for
                all.
        Raises:
            RuntimeError: a pass is running already.
            SiteUnavailable: attention is to be edited, and the model no longer offers it.
        """
        if self._active is not None:
            raise RuntimeError("a pass is running already; passes of one model do not nest.")
        for site in ("attention", "mask", "weights"):  # the model may have been changed since it was wrapped
            if any(getattr(edit, site) is not None for edit in edits):
                self.anatomy.require(site, "an edit")
        record = Recording()
        self._active = _Active(
            edits, record, keep_random_state_at, leaf_embedding, resume_at, head_reads, resume_at or 0
        )
        try:
            yield record
        finally:
            self._active = None
            self._inside = None
            self._unpatch()

    def _install(self) -> list[torch.utils.hooks.RemovableHandle]:
        parts = self.anatomy
        handles = [
            parts.embedding.register_forward_hook(_Hook(self._leave_embedding)),
            parts.base.register_forward_hook(_Hook(self._leave_base)),
        ]
        for layer in parts.layers:
            handles.append(layer.register_forward_pre_hook(_Hook(self._enter_layer), with_kwargs=True))
            handles.append(layer.register_forward_hook(_Hook(self._leave_layer)))
        if parts.final_norm is not None:
            handles.append(parts.final_norm.register_forward_hook(_Hook(self._leave_final_norm)))
        if not parts.inside_seam:
            for attention, end in parts.attention_blocks():
                handles.append(attention.register_forward_pre_hook(_Hook(self._enter_attention), with_kwargs=True))
                handles.append(end.register_forward_hook(_Hook(self._leave_attention)))
        if parts.label_linear is not None:
            handles.append(parts.label_linear.register_forward_pre_hook(_Hook(self._enter_label_linear)))
        return handles

    def _leave_embedding(self, module: nn.Module, args: Any, output: Tensor) -> Tensor | None:
        if (now := self._active) is None:
            return None
        if now.leaf_embedding and torch.is_grad_enabled() and not output.requires_grad:
            output = output.detach().requires_grad_()
        states = batch_first(output, self.anatomy.family)
        for edit in now.edits:
            if edit.embedding is not None:
                states = edit.embedding(states)
        now.record.embedding = states
        return batch_first(states, self.anatomy.family)

    def _enter_layer(self, module: nn.Module, args: Any, kwargs: dict[str, Any]) -> tuple[Any, Any] | None:
        if (now := self._active) is None:
            return None
        index = now.next_layer
        now.next_layer += 1
        if index in now.keep_random_state_at:
            now.record.random_states[index] = RandomState.capture(args[0].device)
        states = batch_first(args[0], self.anatomy.family)
        if index != now.resume_at:
            for edit in now.edits:
                if edit.hidden is not None:
                    states = edit.hidden(index, states)
        now.record.hidden[index] = states
        args, kwargs = _masked(index, args, kwargs, [edit.mask for edit in now.edits if edit.mask is not None])
        now.record.layer_calls[index] = (module, args[1:], kwargs)
        inside = [edit.inside for edit in now.edits if edit.inside is not None]
        if inside:
            kwargs = {**kwargs, _INSIDE: (index, inside)}
        if (bias := self._attention_bias(module, index, states, args, kwargs)) is not None:
            if self.anatomy.family.bias_method:
                self._patch(module, bias)
            else:
                earlier = kwargs.get("position_bias")
                kwargs = {**kwargs, "position_bias": bias if earlier is None else earlier + bias}
        return (batch_first(states, self.anatomy.family), *args[1:]), kwargs

    def _attention_bias(
        self, layer: nn.Module, index: int, states: Tensor, args: Any, kwargs: dict[str, Any]
    ) -> Tensor | None:
        assert self._active is not None
        edits = [edit.attention for edit in self._active.edits if edit.attention is not None]
        if not edits:
            return None
        read = self.anatomy.attention_input(layer, states)
        mask = args[1] if len(args) > 1 else kwargs.get("attention_mask")
        biases = [bias for edit in edits if (bias := edit(index, read, mask)) is not None]
        return None if not biases else sum(biases[1:], start=biases[0])

    def _patch(self, layer: nn.Module, bias: Tensor) -> None:
        """Add to what a method of the layer returns, until the layer returns."""
        path, _, name = self.anatomy.family.bias_method.rpartition(".")
        owner = layer.get_submodule(path)
        method = getattr(owner, name)

        def with_bias(*args: Any, **kwargs: Any) -> Tensor:
            scores: Tensor = method(*args, **kwargs)  # (batch · heads, tokens, tokens)
            heads = scores.shape[0] // bias.shape[0]
            return scores + bias.expand(-1, heads, -1, -1).reshape(scores.shape).to(scores.dtype)

        setattr(owner, name, with_bias)
        self._patched.append((owner, name))

    def _unpatch(self) -> None:
        for owner, name in self._patched:
            delattr(owner, name)
        self._patched = []

    def _leave_layer(self, module: nn.Module, args: Any, output: Any) -> None:
        self._unpatch()
        if (now := self._active) is not None and now.next_layer == self.anatomy.depth:
            now.record.hidden[now.next_layer] = batch_first(first_tensor(output), self.anatomy.family)

    def _leave_final_norm(self, module: nn.Module, args: Any, output: Tensor) -> None:
        if (now := self._active) is not None:
            now.record.hidden[self.anatomy.depth] = batch_first(output, self.anatomy.family)

    def _enter_attention(self, module: nn.Module, args: Any, kwargs: dict[str, Any]) -> tuple[Any, Any] | None:
        if _INSIDE not in kwargs:
            return None
        self._inside = kwargs[_INSIDE]
        return args, {name: value for name, value in kwargs.items() if name != _INSIDE}

    def _leave_attention(self, module: nn.Module, args: Any, output: Any) -> Any:
        if self._inside is None:
            return None
        (index, edits), self._inside = self._inside, None
        states = first_tensor(output)
        for edit in edits:
            states = edit(index, states)
        return (states, *output[1:]) if isinstance(output, tuple) else states

    def _leave_base(self, module: nn.Module, args: Any, output: Any) -> Any:
        if (now := self._active) is None:
            return None
        now.record.last = output[0]
        return None if now.head_reads is None else states_at(output, now.head_reads)

    def _enter_label_linear(self, module: nn.Module, args: Any) -> tuple[Any, ...] | None:
        if (now := self._active) is None:
            return None
        vector = args[0]
        for edit in now.edits:
            if edit.pooled is not None:
                vector = edit.pooled(vector)
        now.record.pooled = vector
        return (vector, *args[1:])


def _masked(
    index: int, args: tuple[Any, ...], kwargs: dict[str, Any], edits: Sequence[MaskEdit]
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """The arguments of a layer with its attention mask edited."""
    mask = args[1] if len(args) > 1 else kwargs.get("attention_mask")
    if mask is None or not edits:
        return args, kwargs
    for edit in edits:
        mask = edit(index, mask)
    return ((args[0], mask, *args[2:]), kwargs) if len(args) > 1 else (args, {**kwargs, "attention_mask": mask})


def states_at(output: Any, places: Tensor) -> Any:
    """What an encoder returns, its last states narrowed to some places, as one row.

    Args:
        output: a tuple that starts with the states, or an object with `last_hidden_state`.
        places: (batch, tokens), true where a state stays.
    """
    read = output[0][places][None]
    return (read, *output[1:]) if isinstance(output, tuple) else replace(output, last_hidden_state=read)


def first_tensor(output: Any) -> Tensor:
    """The hidden states in what a layer returns.

    Args:
        output: a tensor, or a tuple that starts with one.
    """
    states = output[0] if isinstance(output, tuple) else output
    assert isinstance(states, Tensor)
    return states
