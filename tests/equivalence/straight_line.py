"""BERT and five regularizers in one straight line of code that knows nothing of passes, sites and steps.

The encoder is computed from its weights alone, and every term is written out from its definition.
"""

import copy
import functools
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
import transformers
from torch import Tensor, nn

from steadytune import ASA, CAT, LNSR, HyPe, RegularizedModel
from steadytune.functional import keyed_generator, keyed_seed
from steadytune.methods import Method
from tolerances import SAME

DEPTH, WIDTH, HEADS, CLASSES, PADDING, SEED, RANK = 3, 16, 2, 3, 0, 11, 0
CLOSE: dict[str, float] = {"rtol": SAME[torch.float64], "atol": SAME[torch.float64]}

Enter = Callable[[str, int, Tensor], Tensor]
"""Place ("between" or "inside"), layer and states; gives the states that the model goes on with."""

Bias = Callable[[int, Tensor], Tensor | None]
"""Layer and the states that enter it; gives an addition to its attention scores, equal for all heads."""


@functools.cache
def _tiny_bert(dropout: float, dtype: torch.dtype) -> Any:
    config = transformers.BertConfig(
        vocab_size=50,
        hidden_size=WIDTH,
        num_hidden_layers=DEPTH,
        num_attention_heads=HEADS,
        intermediate_size=24,
        max_position_embeddings=16,
        hidden_dropout_prob=dropout,
        attention_probs_dropout_prob=dropout,
        num_labels=CLASSES,
        pad_token_id=PADDING,
    )
    with torch.random.fork_rng():
        torch.manual_seed(3)
        model = transformers.BertForSequenceClassification(config)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(0.1 * torch.randn_like(parameter))
    return model.to(dtype).train()


def tiny_bert(dropout: float, dtype: torch.dtype = torch.float64) -> Any:
    """A model of its own with the same random weights in every call, large enough for every layer to matter."""
    return copy.deepcopy(_tiny_bert(dropout, dtype))


def batch(step: int = 0) -> dict[str, Tensor]:
    """Six texts of 3 to 9 tokens; some ids come several times, the first one in every text."""
    generator = keyed_generator("cpu", "batch", step)
    ids = torch.randint(5, 50, (6, 9), generator=generator)
    ids[:, 0], ids[0, 2] = 2, ids[1, 3]
    mask = (torch.arange(9) < torch.tensor([9, 7, 5, 9, 8, 3])[:, None]).long()
    return {"input_ids": ids * mask, "attention_mask": mask, "labels": torch.tensor([0, 1, 0, 2, 1, 0])}


# -- the encoder ------------------------------------------------------------------------------------------------------


@dataclass
class Seen:
    """What one pass left: by layer the states that entered it and the random state then; the scores."""

    hidden: list[Tensor] = field(default_factory=list)
    random: list[Tensor] = field(default_factory=list)
    logits: Tensor = field(default_factory=lambda: torch.empty(0))

    @property
    def vector(self) -> Tensor:
        return self.hidden[-1][:, 0]


def as_it_is(place: str, layer: int, states: Tensor) -> Tensor:
    return states


def unbiased(layer: int, states: Tensor) -> None:
    return None


def norm(module: Any, values: Tensor) -> Tensor:
    centered = values - values.mean(dim=-1, keepdim=True)
    return module.weight * centered / (centered.square().mean(dim=-1, keepdim=True) + module.eps).sqrt() + module.bias


def linear(module: Any, values: Tensor) -> Tensor:
    return values @ module.weight.T + module.bias


def drop(model: Any, values: Tensor) -> Tensor:
    return nn.functional.dropout(values, model.config.hidden_dropout_prob)


def one_layer(model: Any, index: int, states: Tensor, mask: Tensor, enter: Enter, bias: Tensor | None) -> Tensor:
    parts = model.bert.encoder.layer[index]
    maps = parts.attention.self
    query, key, value = (
        linear(module, states).unflatten(-1, (HEADS, -1)).transpose(1, 2)
        for module in (maps.query, maps.key, maps.value)
    )
    scores = query @ key.mT / (WIDTH // HEADS) ** 0.5
    if bias is not None:
        scores = scores + bias[:, None]
    scores = scores.masked_fill(mask[:, None, None, :] == 0, -torch.inf)
    shares = nn.functional.dropout(scores.softmax(dim=-1), model.config.attention_probs_dropout_prob)
    mixed = (shares @ value).transpose(1, 2).flatten(-2)
    after = parts.attention.output
    attended = enter("inside", index, norm(after.LayerNorm, drop(model, linear(after.dense, mixed)) + states))
    inner = nn.functional.gelu(linear(parts.intermediate.dense, attended))
    return norm(parts.output.LayerNorm, drop(model, linear(parts.output.dense, inner)) + attended)


def upward(
    model: Any,
    states: Tensor,
    mask: Tensor,
    *,
    enter: Enter = as_it_is,
    bias: Bias = unbiased,
    first: int = 0,
    entered: bool = False,
) -> Seen:
    """The layers from `first` on; `entered`: what happens at the entrance of the first one has happened."""
    seen = Seen(hidden=[states] * first)
    for index in range(first, DEPTH):
        seen.random.append(torch.get_rng_state())
        if index > first or not entered:
            states = enter("between", index, states)
        seen.hidden.append(states)
        states = one_layer(model, index, states, mask, enter, bias(index, states))
    seen.hidden.append(states)
    return seen


def forward(
    model: Any, data: dict[str, Tensor], *, words: Tensor | None = None, enter: Enter = as_it_is, bias: Bias = unbiased
) -> Seen:
    """A whole pass; `words` stands in for the word-embedding matrix."""
    parts = model.bert.embeddings
    words = parts.word_embeddings.weight if words is None else words
    positions = parts.position_embeddings.weight[: data["input_ids"].shape[1]]
    summed = words[data["input_ids"]] + positions + parts.token_type_embeddings.weight[0]
    states = drop(model, norm(parts.LayerNorm, summed))
    seen = upward(model, states, data["attention_mask"], enter=enter, bias=bias)
    pooled = torch.tanh(linear(model.bert.pooler.dense, seen.vector))
    seen.logits = linear(model.classifier, drop(model, pooled))
    return seen


@contextmanager
def dropout_of(start: int | Tensor) -> Iterator[None]:
    """Dropout from a seed or a random state; the stream outside goes on where it was."""
    before = torch.get_rng_state()
    if isinstance(start, Tensor):
        torch.set_rng_state(start)
    else:
        torch.manual_seed(start)
    yield
    torch.set_rng_state(before)


# -- the terms --------------------------------------------------------------------------------------------------------


def cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    rows = [logits[i].logsumexp(dim=0) - logits[i, label] for i, label in enumerate(labels.tolist())]
    return torch.stack(rows).mean()


def contrast(vectors: Tensor, partners: Sequence[Sequence[int]], tau: float) -> Tensor:
    """Mean over anchors of the mean over their partners of −log (share of the partner among all others)."""
    total = vectors.new_zeros(())
    for i, anchor in enumerate(vectors):
        others = [k for k in range(len(vectors)) if k != i]
        scores = {k: anchor @ vectors[k] / (anchor.norm() * vectors[k].norm() * tau) for k in others}
        mass = torch.stack([score.exp() for score in scores.values()]).sum()
        for j in partners[i]:
            total = total - (scores[j].exp() / mass).log() / len(partners[i])
    return total / len(vectors)


def same_class(labels: Tensor) -> list[list[int]]:
    classes = labels.tolist()
    return [[j for j, other in enumerate(classes) if other == own and j != i] for i, own in enumerate(classes)]


def divergence(one: Tensor, other: Tensor) -> Tensor:
    p, q = one.softmax(dim=-1), other.softmax(dim=-1)
    return (0.5 * (p * (p / q).log()).sum(dim=-1) + 0.5 * (q * (q / p).log()).sum(dim=-1)).mean()


def hype_noise(hype: HyPe | None, stream: str, step: int) -> Enter:
    """What happens to states in the pass whose noise has this name."""

    def enter(place: str, layer: int, states: Tensor) -> Tensor:
        if hype is None or hype.place not in (place, "both") or (hype.layers is not None and layer not in hype.layers):
            return states
        generator = keyed_generator("cpu", SEED, "hype", step, RANK, stream, place, layer)
        drawn = torch.empty_like(states, requires_grad=False)
        if hype.distribution == "normal":
            drawn = drawn.normal_(0, hype.noise_std, generator=generator)
        else:
            drawn = drawn.uniform_(-hype.noise_std, hype.noise_std, generator=generator)
        if hype.relative:
            drawn = drawn * (states.detach() ** 2).mean(dim=2, keepdim=True) ** 0.5
        return states + drawn

    return enter


def perturbed_words(model: Any, data: dict[str, Tensor], label_loss: Tensor, cat: CAT) -> Tensor:
    """The word-embedding matrix and one step along the gradient of the label loss with respect to it, as a constant."""
    words = model.bert.embeddings.word_embeddings.weight
    (gradient,) = torch.autograd.grad(label_loss, words, retain_graph=True)
    kept = torch.ones(len(words), 1, dtype=torch.float64)
    kept[PADDING] = 0
    if not cat.perturb_special:
        for ids, length in zip(data["input_ids"], data["attention_mask"].sum(dim=1), strict=True):
            kept[ids[0]] = kept[ids[length - 1]] = 0
    gradient = gradient * kept
    step = gradient.sign() if cat.norm == "linf" else gradient / (gradient**2).sum().sqrt()
    return words + cat.epsilon * step


def cat_term(own: dict[str, Tensor], clean: Seen, other: Seen, cat: CAT) -> Tensor:
    rows = [(seen.vector @ own["cat.0.weight"].T).clamp(min=0) @ own["cat.2.weight"].T for seen in (clean, other)]
    count = len(rows[0])
    return contrast(torch.cat(rows), [[(i + count) % (2 * count)] for i in range(2 * count)], cat.temperature)


def lnsr_term(model: Any, data: dict[str, Tensor], clean: Seen, lnsr: LNSR, hype: HyPe | None, step: int) -> Tensor:
    lengths, penalties = data["attention_mask"].sum(dim=1).tolist(), []
    below = clean.hidden[lnsr.injection_layer]
    for draw in range(lnsr.draws):
        generator = keyed_generator("cpu", SEED, "lnsr", step, RANK, "loss", "noise", draw)
        noise = torch.empty_like(below, requires_grad=False).normal_(generator=generator)
        if lnsr.relative:
            noise = noise / noise.norm(dim=-1, keepdim=True) * below.detach().norm(dim=-1, keepdim=True)
        noise = lnsr.noise_std * noise * data["attention_mask"][..., None]
        stream, start = "clean", clean.random[lnsr.injection_layer]
        if lnsr.dropout == "fresh":
            stream, start = f"lnsr/{draw}", keyed_seed(SEED, "dropout", f"lnsr/{draw}", step, RANK)
        with dropout_of(start):
            noisy = upward(
                model,
                below + noise,
                data["attention_mask"],
                enter=hype_noise(hype, stream, step),
                first=lnsr.injection_layer,
                entered=True,
            )
        for level in lnsr.layers or range(lnsr.injection_layer + 1, DEPTH + 1):
            for text, length in enumerate(lengths):
                read = slice(length if lnsr.tokens == "all" else 1)
                states = clean.hidden[level][text, read]
                distances = ((noisy.hidden[level][text, read] - states) ** 2).sum(dim=1)
                units = (states.detach() ** 2).sum(dim=1) if lnsr.normalize else WIDTH
                penalties.append((distances / units).mean() / len(lengths))
    levels = len(lnsr.layers or range(lnsr.injection_layer, DEPTH))
    return torch.stack(penalties).sum() / levels / lnsr.draws


@dataclass
class Masked:
    """One layer of a masked pass: scores, the bias they gave, and which units were free to be masked."""

    scores: Tensor
    bias: Tensor
    free: Tensor


def masking(own: dict[str, Tensor], data: dict[str, Tensor], asa: ASA, step: int, made: list[Masked]) -> Bias:
    """The adversary of a pass; what it did goes to `made`."""
    mask = data["attention_mask"].bool()
    attacked = sorted(asa.layers or range(DEPTH))

    def bias(layer: int, states: Tensor) -> Tensor | None:
        if layer not in attacked:
            return None
        free = mask[:, :, None] & mask[:, None, :]
        if asa.protect == "self":
            free = free & ~torch.eye(mask.shape[1], dtype=torch.bool)
        if asa.protect == "cls_col":
            free[:, :, 0] = False
        if asa.adversary == "random":
            generator = keyed_generator("cpu", SEED, "asa", step, RANK, "loss", "mask", layer)
            scores = torch.empty(free.shape, dtype=torch.float64).uniform_(generator=generator) - asa.mask_fraction
        else:
            place = 0 if asa.shared else attacked.index(layer)
            query, key = (
                states.detach() @ own[f"asa.{kind}.{place}.weight"].T + own[f"asa.{kind}.{place}.bias"]
                for kind in ("query", "key")
            )
            scores = query @ key.mT / query.shape[-1] ** 0.5 + asa.keep_bias
        if asa.protect == "none":
            for text, row in torch.cartesian_prod(*map(torch.arange, mask.shape)).tolist():
                if not (scores[text, row, free[text, row]] > 0).any():
                    free[text, row] = False
        hidden = torch.zeros_like(scores, requires_grad=False)
        hidden[free & (scores <= 0)] = -10_000
        made.append(Masked(scores, hidden.requires_grad_(), free))
        return hidden

    return bias


def teach(made: list[Masked], asa: ASA, factor: float) -> None:
    """The adversary's gradient from those that arrived at the biases, for a term that has this factor in the loss.

    The slope of a hard threshold is taken for that of a sigmoid, the sign is turned, and every kept unit has its price.
    """
    units = torch.stack([layer.free.double().sum(dim=(1, 2)) for layer in made]).sum(dim=0)
    for layer in made:
        assert layer.bias.grad is not None
        prices = asa.temperature**2 / len(units) / (units if asa.parameterization == "normalized" else units**0)
        of_keep = asa.gain * layer.bias.grad + factor * prices[:, None, None]
        slope = layer.scores.detach().sigmoid() * layer.scores.detach().neg().sigmoid()
        layer.scores.backward(torch.where(layer.free, -slope * of_keep, 0.0))


# -- one step ---------------------------------------------------------------------------------------------------------


@dataclass
class Line:
    """What one step computed, its gradients back-propagated."""

    loss: Tensor
    task_loss: Tensor
    terms: dict[str, Tensor]


def one_step(model: Any, methods: Sequence[Method], own: dict[str, Tensor], step: int) -> Line:
    """Loss = (L_task + Σ o L + Σ w R) / (1 + Σ o), o = λ / (1 − λ): passes, terms, their sum and all gradients."""
    data, terms, made = batch(step), dict[str, Tensor](), list[Masked]()
    given: dict[str, Any] = {method.key: method for method in methods}
    hype, scl, cat, lnsr, asa = map(given.get, ("hype", "scl", "cat", "lnsr", "asa"))
    start = torch.get_rng_state()
    clean = forward(model, data, enter=hype_noise(hype, "clean", step))
    label_losses = [cross_entropy(clean.logits, data["labels"])]
    if scl is not None:
        terms["scl"] = contrast(clean.vector, same_class(data["labels"]), scl.temperature)
    if cat is not None:
        words = perturbed_words(model, data, label_losses[0], cat)
        with dropout_of(keyed_seed(SEED, "dropout", "cat", step, RANK)):
            other = forward(model, data, words=words, enter=hype_noise(hype, "cat", step))
        label_losses.append(cross_entropy(other.logits, data["labels"]))
        if cat.weight > 0:
            terms["cat"] = cat_term(own, clean, other, cat)
    if lnsr is not None:
        terms["lnsr"] = lnsr_term(model, data, clean, lnsr, hype, step)
    if asa is not None:
        stream = "clean" if asa.share_dropout else "asa"
        bias = unbiased if asa.adversary == "none" else masking(own, data, asa, step, made)
        with dropout_of(start if asa.share_dropout else keyed_seed(SEED, "dropout", "asa", step, RANK)):
            masked = forward(model, data, enter=hype_noise(hype, stream, step), bias=bias)
        terms["asa"] = divergence(clean.logits, masked.logits)
    task_loss = torch.stack(label_losses).mean()
    convex = {key: given[key].weight / (1 - given[key].weight) for key in ("scl", "cat") if key in given}
    factors = convex | {key: given[key].weight for key in ("lnsr", "asa") if key in given}
    whole = 1 + sum(convex.values())
    loss = (task_loss + sum(factors[key] * term for key, term in terms.items())) / whole
    loss.backward()
    if asa is not None and asa.adversary == "learned":
        teach(made, asa, asa.weight / whole)
    return Line(loss.detach(), task_loss.detach(), terms)


def wrapped(dropout: float, methods: Sequence[Method]) -> RegularizedModel:
    """A model with these methods, whose own parameters are large enough to make a difference."""
    wrapper = RegularizedModel(tiny_bert(dropout), methods, seed=SEED)
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for parameter in wrapper.method_modules.parameters():
            parameter.add_(torch.empty_like(parameter).normal_(0, 0.3, generator=generator))
    return wrapper


def gradients(named: Iterator[tuple[str, Tensor]]) -> dict[str, Tensor]:
    return {name: tensor.grad.clone() for name, tensor in named if tensor.grad is not None}


def assert_a_step_is_the_straight_line(methods: Sequence[Method], dropout: float, steps: int = 2) -> None:
    """Loss, its parts, and the gradient of every parameter of the model and of the methods; the weights stay.

    Args:
        methods: the stack.
        dropout: of the model.
        steps: how many steps; each draws other noise.
    """
    wrapper, by_hand = wrapped(dropout, methods), tiny_bert(dropout)
    owned = dict(wrapper.method_modules.named_parameters())
    own = {name: parameter.detach().clone().requires_grad_() for name, parameter in owned.items()}
    for step in range(steps):
        torch.manual_seed(step)
        found = wrapper(**batch(step))
        found.loss.backward()
        torch.manual_seed(step)
        line = one_step(by_hand, methods, own, step)
        torch.testing.assert_close(found.loss.detach(), line.loss, **CLOSE)
        torch.testing.assert_close(found.task_loss, line.task_loss, **CLOSE)
        torch.testing.assert_close(dict(found.terms), {key: term.detach() for key, term in line.terms.items()}, **CLOSE)
        expected = gradients(by_hand.named_parameters())
        assert expected.keys() == dict(by_hand.named_parameters()).keys()
        torch.testing.assert_close(gradients(wrapper.model.named_parameters()), expected, **CLOSE)
        expected = gradients(iter(own.items()))
        assert expected.keys() == owned.keys()
        torch.testing.assert_close(gradients(wrapper.method_modules.named_parameters()), expected, **CLOSE)
        wrapper.zero_grad()
        by_hand.zero_grad()
        for parameter in own.values():
            parameter.grad = None


def trained(module: nn.Module, loss_of: Callable[[dict[str, Tensor]], Tensor], steps: int = 5) -> dict[str, Tensor]:
    """Every weight, moment, loss and the random state after some steps of AdamW."""
    optimizer = torch.optim.AdamW(module.parameters(), lr=1e-3)
    torch.manual_seed(5)
    losses = []
    for step in range(steps):
        loss = loss_of(batch(step))
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.detach())
    moments = {f"{i}/{k}": v for i, state in optimizer.state_dict()["state"].items() for k, v in state.items()}
    return {**module.state_dict(), **moments, "losses": torch.stack(losses), "random": torch.get_rng_state()}
