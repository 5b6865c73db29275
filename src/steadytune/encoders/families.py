"""The encoder families and how each names its parts. The only file that knows Hugging Face attribute names."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from torch import Tensor, nn

Site = str
"""One of "embedding", "hidden", "inside", "attention", "pooled", "logits", "weights"."""

SITES: tuple[Site, ...] = ("embedding", "hidden", "inside", "attention", "mask", "pooled", "logits", "weights")


class SiteUnavailable(ValueError):
    """A method asks for a place in the network that this model does not offer."""


class DropoutUnavailable(ValueError):
    """A family has no dropout of its own of this kind."""


class UnknownFamily(ValueError):
    """The model belongs to no supported encoder family."""


@dataclass(frozen=True, kw_only=True)
class Family:
    """How one `config.model_type` is laid out.

    Attributes:
        name: `config.model_type`.
        layers: path from the base model to the list of layers.
        attention: path from a layer to its attention block; keyword arguments of the layer reach it only if
            `passes_keywords`.
        attention_norm: path from a layer to the norm between its input and its attention; "" if there is none.
        attention_end: path from a layer to the module whose output enters the feed-forward block ("inside").
        final_norm: path from the base model to the norm after the last layer; "" if there is none.
        bias_method: path from a layer to a method whose result is added to the attention scores; "" if keywords reach
            them.
        passes_keywords: a keyword given to a layer reaches its attention function.
        batch_first: hidden states are (batch, tokens, dim), not (tokens, batch, dim).
        sentence_token: position of the token that the classification head reads.
        layer_count: number of layer calls in one forward pass, if it is not the length of the list.
        mixes_after_first: something outside the layers reads the embedding output after layer 0.
        longest: most tokens that its positions reach; None if they set no limit.
        dropout: names of the configuration values for each kind: "hidden", "attention", "head"; a kind without a name,
            or whose value is unset, follows "hidden".
        head_dropout: by the end of a model's class name, the configuration value for a head with one of its own.
    """

    name: str
    layers: str
    attention: str = "attention"
    attention_norm: str = ""
    attention_end: str = "attention"
    final_norm: str = ""
    bias_method: str = ""
    passes_keywords: bool = True
    batch_first: bool = True
    sentence_token: Callable[[Any], int] = lambda config: 0
    layer_count: Callable[[Any], int | None] = lambda config: None
    mixes_after_first: Callable[[Any], bool] = lambda config: False
    longest: Callable[[Any], int | None] = lambda config: int(config.max_position_embeddings)
    dropout: dict[str, tuple[str, ...]] = field(
        default_factory=lambda: {
            "hidden": ("hidden_dropout_prob",),
            "attention": ("attention_probs_dropout_prob",),
            "head": ("classifier_dropout",),
        }
    )
    head_dropout: dict[str, str] = field(default_factory=dict)


def _after_padding(config: Any) -> int:
    """Positions are counted from the one after the padding token's."""
    return int(config.max_position_embeddings) - int(config.pad_token_id) - 1


def _bert_like(name: str) -> Family:
    return Family(name=name, layers="encoder.layer")


FAMILIES: dict[str, Family] = {
    family.name: family
    for family in (
        _bert_like("bert"),
        replace(_bert_like("roberta"), longest=_after_padding),
        replace(_bert_like("xlm-roberta"), longest=_after_padding),
        replace(_bert_like("electra"), head_dropout={"ForMultipleChoice": "summary_last_dropout"}),
        Family(
            name="distilbert",
            layers="transformer.layer",
            attention_end="sa_layer_norm",
            dropout={
                "hidden": ("dropout",),
                "attention": ("attention_dropout",),
                "head": ("seq_classif_dropout",),
            },
            head_dropout={"ForQuestionAnswering": "qa_dropout"},
        ),
        Family(
            name="albert",  # few layer groups, called many times
            layers="encoder.albert_layer_groups",
            attention="albert_layers.0.attention",
            attention_end="albert_layers.0.attention",
            layer_count=lambda config: config.num_hidden_layers,
            dropout={
                "hidden": ("hidden_dropout_prob",),
                "attention": ("attention_probs_dropout_prob",),
                "head": ("classifier_dropout_prob",),
            },
        ),
        Family(
            name="deberta-v2",  # v3 checkpoints carry the same model type
            longest=lambda config: None,
            layers="encoder.layer",
            passes_keywords=False,
            bias_method="attention.self.disentangled_attention_bias",
            mixes_after_first=lambda config: getattr(config, "conv_kernel_size", 0) > 0,
            dropout={
                "hidden": ("hidden_dropout_prob",),
                "attention": ("attention_probs_dropout_prob",),
                "head": ("pooler_dropout", "cls_dropout"),
            },
        ),
        Family(
            name="modernbert",
            layers="layers",
            attention="attn",
            attention_norm="attn_norm",
            attention_end="attn",
            final_norm="final_norm",
            dropout={
                "hidden": ("embedding_dropout", "mlp_dropout"),
                "attention": ("attention_dropout",),
                "head": ("classifier_dropout",),
            },
        ),
        Family(
            name="mpnet",
            longest=_after_padding,
            layers="encoder.layer",
            passes_keywords=False,
            dropout={"hidden": ("hidden_dropout_prob",), "attention": ("attention_probs_dropout_prob",), "head": ()},
        ),
        Family(
            name="xlnet",
            longest=lambda config: None,
            layers="layer",
            attention="rel_attn",
            attention_end="rel_attn",
            passes_keywords=False,
            batch_first=False,
            sentence_token=lambda config: 0 if config.summary_type == "first" else -1,
            dropout={"hidden": ("dropout",), "attention": (), "head": ("summary_last_dropout",)},
        ),
    )
}


def family_of(config: Any) -> Family:
    """The family of a model configuration.

    Args:
        config: a Hugging Face configuration.
    Raises:
        UnknownFamily: `config.model_type` is not supported.
    """
    name = getattr(config, "model_type", None)
    if name not in FAMILIES:
        raise UnknownFamily(f"encoder family {name!r} is not supported; supported are {', '.join(FAMILIES)}.")
    return FAMILIES[name]


def longest_input(config: Any) -> int | None:
    """Most tokens that a model can read at once; None if its positions set no limit.

    Args:
        config: the model's configuration.
    Raises:
        UnknownFamily: its family is not supported.
    """
    return family_of(config).longest(config)


def dropout_settings(config: Any, *, hidden: float | None = None, attention: float | None = None) -> dict[str, float]:
    """Configuration values that set the dropout of a model when it is loaded.

    Args:
        config: the model's configuration.
        hidden: probability for embeddings, sub-blocks and the classification head; None leaves them alone.
        attention: probability for attention weights; None leaves it alone.
    Returns:
        Keyword arguments for `from_pretrained`.
    Raises:
        DropoutUnavailable: the family has one rate for all.

    Source: the released HyPe code switches `hidden_dropout_prob` off, which covers the head.
    """
    family = family_of(config)
    names, heads = family.dropout, (*family.dropout["head"], *family.head_dropout.values())
    wanted = {} if hidden is None else dict.fromkeys((*names["hidden"], *heads), hidden)
    if attention is not None:
        if not names["attention"]:
            raise DropoutUnavailable(f"{config.model_type} has no dropout.attention of its own; set dropout.hidden.")
        wanted |= dict.fromkeys(names["attention"], attention)
    return {name: rate for name, rate in wanted.items() if hasattr(config, name)}  # others fail in from_pretrained


@dataclass(frozen=True)
class Anatomy:
    """The parts of one model that sites are built on.

    Attributes:
        family: its family.
        base: the encoder without its task head.
        embedding: the word-embedding lookup.
        layers: the distinct layer modules.
        final_norm: the norm after the last layer, or None if there is none.
        depth: number of layer calls in one forward pass.
        width: size of the hidden states.
        padding_id: token id of padding, or None if there is none.
        label_linear: the linear map to the labels, or None if there is none.
        inside_seam: why states inside a layer cannot be edited, or "" if they can.
        first_resume: lowest layer at which a pass may be resumed.
        sentence_token: position of the token that the head reads.
        dropout: probability by kind ("hidden", "attention", "head"), the largest where a kind has several.
        reads_tokens: the head maps every token to labels, not one vector per text.
    """

    family: Family
    base: nn.Module
    embedding: nn.Module
    layers: tuple[nn.Module, ...]
    final_norm: nn.Module | None
    depth: int
    width: int
    padding_id: int | None
    label_linear: nn.Linear | None
    inside_seam: str
    first_resume: int
    sentence_token: int
    dropout: dict[str, float]
    reads_tokens: bool

    @property
    def pooler(self) -> nn.Module | None:
        """The encoder's own map of the sentence token after its layers, or None; other heads lie outside `base`."""
        found: nn.Module | None = getattr(self.base, "pooler", None)
        return found

    def attention_blocks(self) -> Iterator[tuple[nn.Module, nn.Module]]:
        """Each layer's attention block and the module whose output enters its feed-forward block."""
        for layer in self.layers:
            yield layer.get_submodule(self.family.attention), layer.get_submodule(self.family.attention_end)

    def attention_input(self, layer: nn.Module, states: Tensor) -> Tensor:
        """What a layer's attention reads.

        Args:
            layer: one of `layers`.
            states: that enter it.
        """
        if not self.family.attention_norm:
            return states
        normed: Tensor = layer.get_submodule(self.family.attention_norm)(states)
        return normed

    def attention_obstacle(self) -> str:
        """Why attention scores cannot be edited now, or "" if they can."""
        config: Any = self.base.config
        implementation = getattr(config, "_attn_implementation", "eager")
        if self.family.bias_method:
            if not getattr(config, "relative_attention", False):
                return "without relative attention nothing is added to its scores"
            if checkpointing(self.base):
                return "gradient checkpointing would compute its layers again without the bias; switch it off"
        elif not self.family.passes_keywords:
            return "its attention takes no additional bias"
        elif getattr(config, "inner_group_num", 1) > 1:
            return "one call runs several attention blocks (inner_group_num > 1)"
        elif implementation != "sdpa":
            return f"attention implementation {implementation!r} ignores a bias; load with attn_implementation='sdpa'"
        return ""

    def require(self, site: Site, method: str) -> None:
        """Refuse, with method, site and family in one sentence, if the site is not available.

        Args:
            site: one of `SITES`.
            method: who asks, for the message.
        Raises:
            SiteUnavailable: the model does not offer the site.
        """
        reason = {
            "attention": self.attention_obstacle(),
            "inside": self.inside_seam,
            "mask": "" if self.family.batch_first else "its layers take a mask of another form",
            "pooled": "its head reads every token, not one vector per text"
            if self.reads_tokens
            else ("" if self.label_linear is not None else "the model has no linear map to labels"),
            "weights": "gradient checkpointing would compute its layers again with other weights; switch it off"
            if checkpointing(self.base)
            else "",
        }.get(site, "" if site in SITES else f"there is no such site; sites are {', '.join(SITES)}")
        if reason:
            raise SiteUnavailable(f"{method} needs the site {site!r}, which {self.family.name} lacks: {reason}.")


def describe(model: nn.Module) -> Anatomy:
    """Find the parts of a model.

    Args:
        model: a Hugging Face model with a task head, or a PEFT model around one.
    Raises:
        UnknownFamily: its family is not supported.
    """
    outer: Any = model
    inner = outer.get_base_model() if hasattr(outer, "get_base_model") else outer  # PEFT
    config = inner.config
    family = family_of(config)
    base = inner.base_model
    layers = tuple(base.get_submodule(family.layers))
    encoder = set(base.modules())  # its own maps may be as wide as the labels, and be registered last
    heads = [m for m in inner.modules() if isinstance(m, nn.Linear) and m not in encoder]
    kind = type(inner).__name__
    outputs = 1 if kind.endswith("ForMultipleChoice") else config.num_labels  # one for each choice, whatever it says
    linears = [m for m in heads if m.out_features == outputs]
    return Anatomy(
        family=family,
        base=base,
        embedding=inner.get_input_embeddings(),
        layers=layers,
        final_norm=base.get_submodule(family.final_norm) if family.final_norm else None,
        depth=family.layer_count(config) or len(layers),
        width=config.hidden_size,
        padding_id=getattr(config, "pad_token_id", None),
        label_linear=linears[-1] if linears else None,
        inside_seam="" if family.passes_keywords else "no per-pass value reaches the inside of its layers",
        first_resume=1 if family.mixes_after_first(config) else 0,
        sentence_token=family.sentence_token(config),
        dropout=_dropout_rates(config, family, kind),
        reads_tokens="ForQuestionAnswering" in kind or kind.endswith("ForTokenClassification"),
    )


def checkpointing(model: nn.Module) -> Literal["", "reentrant", "non-reentrant"]:
    """How the layers of a model are computed again in the backward pass; "" if they are not.

    Args:
        model: with gradient checkpointing enabled or not.
    """
    for module in model.modules():
        if getattr(module, "gradient_checkpointing", False):
            function: Any = getattr(module, "_gradient_checkpointing_func", None)
            reentrant = getattr(function, "keywords", {}).get("use_reentrant", True)
            return "reentrant" if reentrant else "non-reentrant"
    return ""


def _dropout_rates(config: Any, family: Family, model: str) -> dict[str, float]:
    """Probability by kind; a kind without a value of its own, or with an unset one, follows "hidden"."""
    own = [name for ending, name in family.head_dropout.items() if model.endswith(ending)]
    kinds = {**family.dropout, "head": tuple(own) or family.dropout["head"]}
    hidden = max(float(getattr(config, name)) for name in family.dropout["hidden"])

    def rate(name: str) -> float:
        value = getattr(config, name, None)
        return hidden if value is None else float(value)

    return {kind: max(map(rate, names), default=hidden) for kind, names in kinds.items()}


def batch_first(states: Tensor, family: Family) -> Tensor:
    """Hidden states as (batch, tokens, dim); a view, and its own inverse.

    Args:
        states: as the family's layers see them.
        family: whose layout.
    """
    return states if family.batch_first else states.transpose(0, 1)
