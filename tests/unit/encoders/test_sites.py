import copy
import pickle
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from steadytune.encoders import FAMILIES as KNOWN
from steadytune.encoders import Edits, PassOutput, PassRunner, Sites, SiteUnavailable
from tiny import FAMILIES, HEADS, PAD, TOKENS, WIDTH, inputs_of, tiny_batch, tiny_model

DEPTH = 3
WITH_INSIDE = ["bert", "roberta", "xlm-roberta", "electra", "distilbert", "albert", "modernbert"]
DEBERTA = ["deberta-v2", "deberta-v2-conv"]
WITH_BIAS = [*WITH_INSIDE, *DEBERTA]
SEEDED = 11


def run(model: nn.Module, batch: dict[str, Tensor], edits: Sequence[Edits] = (), **options: Any) -> PassOutput:
    """One pass from a fixed dropout seed."""
    sites = Sites(model)
    try:
        return PassRunner(model, sites).run(inputs_of(batch), edits, start=SEEDED, **options)
    finally:
        sites.close()


# -- what is recorded ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", FAMILIES)
def test_recorded_hidden_states_are_those_that_the_model_reports(family: str) -> None:
    model, batch = tiny_model(family).eval(), tiny_batch(family)
    expected = list(model(**inputs_of(batch), output_hidden_states=True).hidden_states)
    recorded = run(model, batch).hidden
    assert sorted(recorded) == list(range(DEPTH + 1))
    for layer, states in enumerate(expected):
        assert torch.equal(recorded[layer], states), layer


@pytest.mark.parametrize("family", FAMILIES)
def test_the_last_hidden_states_are_those_that_the_head_reads(family: str) -> None:
    output = run(tiny_model(family).eval(), tiny_batch(family))  # XLNet drops out once more after its last layer
    assert torch.equal(output.hidden[DEPTH], output.record.last)


def test_what_modernbert_records_last_has_passed_the_final_norm() -> None:
    model: Any = tiny_model("modernbert")
    left: list[Tensor] = []
    model.model.layers[-1].register_forward_hook(lambda module, args, output: left.append(output))
    assert torch.equal(run(model, tiny_batch("modernbert")).hidden[DEPTH], model.model.final_norm(left[0]))


@pytest.mark.parametrize("family", ["bert", "modernbert", "xlnet"])
def test_a_resumed_pass_records_the_same_last_states_as_the_whole_one(family: str) -> None:
    model = tiny_model(family).eval()
    sites = Sites(model)
    runner = PassRunner(model, sites)
    whole = runner.run(inputs_of(tiny_batch(family)))
    resumed = runner.resume(whole, 1, whole.hidden[1], start=None)
    assert torch.equal(resumed.hidden[DEPTH], whole.hidden[DEPTH])


@pytest.mark.parametrize("family", FAMILIES)
def test_recorded_embedding_is_the_lookup_of_the_words(family: str) -> None:
    model, batch = tiny_model(family), tiny_batch(family)
    expected = model.get_input_embeddings()(batch["input_ids"])
    assert torch.equal(run(model, batch).embedding, expected)


@pytest.mark.parametrize("family", FAMILIES)
def test_last_is_the_output_of_the_encoder(family: str) -> None:
    model, batch = tiny_model(family).eval(), tiny_batch(family)
    assert torch.equal(run(model, batch).record.last, model.base_model(**inputs_of(batch))[0])


@pytest.mark.parametrize("family", FAMILIES)
def test_cls_vector_is_the_only_final_state_that_the_head_reads(family: str) -> None:
    model, batch = tiny_model(family).eval(), tiny_batch(family)
    output = run(model, batch)
    (gradient,) = torch.autograd.grad(output.logits.square().sum(), output.record.last)
    read = gradient.norm(dim=-1) > 0  # (batch, tokens)
    assert read.sum(dim=1).eq(1).all()
    assert torch.equal(output.vector("cls"), output.record.last[read])


@pytest.mark.parametrize("family", FAMILIES)
def test_cls_vector_depends_on_real_tokens_only(family: str) -> None:
    model, batch = tiny_model(family).eval(), tiny_batch(family)
    changed = {**batch, "input_ids": torch.where(batch["attention_mask"] == 0, 7, batch["input_ids"])}
    if family in ("roberta", "xlm-roberta", "mpnet"):  # positions are counted from the ids: no pad, other positions
        changed["position_ids"] = (batch["attention_mask"].cumsum(1) * batch["attention_mask"]) + 1
    a, b = run(model, batch).vector("cls"), run(model, changed).vector("cls")
    torch.testing.assert_close(a, b)


@pytest.mark.parametrize("family", FAMILIES)
def test_pooled_feeds_the_label_linear(family: str) -> None:
    model, batch = tiny_model(family), tiny_batch(family)  # training mode: after the head's dropout
    sites = Sites(model)
    output = PassRunner(model, sites).run(inputs_of(batch), start=SEEDED)
    assert sites.anatomy.label_linear is not None
    assert torch.equal(sites.anatomy.label_linear(output.vector("label_input")), output.logits)


@pytest.mark.parametrize("family", FAMILIES)
def test_recording_changes_no_bit_of_the_logits(family: str) -> None:
    model, batch = tiny_model(family), tiny_batch(family)
    with torch.random.fork_rng():
        torch.manual_seed(SEEDED)
        plain = model(**inputs_of(batch)).logits
    assert torch.equal(run(model, batch).logits, plain)


# -- edits ---------------------------------------------------------------------------------------------------------


def an_edit(site: str, change: float) -> Edits:
    """Adds `change` to the first entry of every vector at a site; at "attention", to the score of key 2."""

    def add(states: Tensor) -> Tensor:
        return states + change * torch.eye(states.shape[-1], dtype=states.dtype)[0]

    def bias(index: int, states: Tensor, mask: Tensor | None) -> Tensor:
        tokens = states.shape[1]
        return (change * torch.eye(tokens, dtype=states.dtype)[2]).expand(len(states), 1, tokens, tokens)

    if site == "attention":
        return Edits(attention=bias)
    if site in ("hidden", "inside"):
        return Edits(**{site: lambda index, states: add(states)})
    return Edits(**{site: add})


SITES_OF = [
    (family, site)
    for family in FAMILIES
    for site in ("embedding", "hidden", "inside", "attention", "pooled")
    if family in {"inside": WITH_INSIDE, "attention": WITH_BIAS}.get(site, FAMILIES)
]


@pytest.mark.parametrize(("family", "site"), SITES_OF)
def test_an_edit_changes_the_output(family: str, site: str) -> None:
    model, batch = tiny_model(family), tiny_batch(family)
    plain, edited = run(model, batch).logits, run(model, batch, [an_edit(site, 0.5)]).logits
    assert (plain - edited).abs().amin(dim=0).max() > 1e-4  # in every row


@pytest.mark.parametrize(("family", "site"), SITES_OF)
def test_an_edit_that_changes_nothing_changes_no_bit(family: str, site: str) -> None:
    model, batch = tiny_model(family), tiny_batch(family)
    if (
        site == "attention" and family not in DEBERTA
    ):  # a bias of 0 makes the mask a float one, for which the kernel rounds otherwise
        nothing, close = an_edit(site, 0.0), {"rtol": 1e-5, "atol": 1e-6}
    else:
        nothing, close = an_edit(site, 0.0), {"rtol": 0.0, "atol": 0.0}
    plain, edited = run(model.eval(), batch).logits, run(model, batch, [nothing]).logits
    torch.testing.assert_close(edited, plain, **close)


@pytest.mark.parametrize("family", WITH_BIAS)
def test_an_attention_edit_may_decline_and_changes_no_bit(family: str) -> None:
    model, batch = tiny_model(family), tiny_batch(family)
    plain = run(model, batch).logits
    assert torch.equal(run(model, batch, [Edits(attention=lambda i, states, mask: None)]).logits, plain)


@pytest.mark.parametrize("family", FAMILIES)
def test_edits_are_applied_in_order_and_then_recorded(family: str) -> None:
    double_then_shift = [
        Edits(hidden=lambda i, states: 2 * states, embedding=lambda states: 2 * states, pooled=lambda v: 2 * v),
        Edits(hidden=lambda i, states: states + 1, embedding=lambda states: states + 1, pooled=lambda v: v + 1),
    ]
    model, batch = tiny_model(family), tiny_batch(family)
    before: dict[int, Tensor] = {}
    spy = Edits(hidden=lambda i, states: before.setdefault(i, states), pooled=lambda v: before.setdefault(-1, v))
    output = run(model, batch, [spy, *double_then_shift])
    assert torch.equal(output.embedding, 2 * model.get_input_embeddings()(batch["input_ids"]) + 1)
    assert torch.equal(output.vector("label_input"), 2 * before[-1] + 1)
    for layer in range(DEPTH):
        assert torch.equal(output.hidden[layer], 2 * before[layer] + 1), layer


@pytest.mark.parametrize("family", FAMILIES)
def test_layer_edits_see_every_layer_once_in_order_as_batch_tokens_dim(family: str) -> None:
    model, batch = tiny_model(family), tiny_batch(family)
    calls: list[tuple[int, torch.Size]] = []

    def spy(index: int, states: Tensor) -> Tensor:
        calls.append((index, states.shape))
        return states

    output = run(model, batch, [Edits(hidden=spy)])
    assert calls == [(layer, (4, TOKENS, WIDTH)) for layer in range(DEPTH)]
    assert all(states.shape == (4, TOKENS, WIDTH) for states in output.hidden.values())


@pytest.mark.parametrize("family", WITH_INSIDE)
def test_inside_edits_see_every_layer_once_in_order(family: str) -> None:
    calls: list[int] = []

    def spy(index: int, states: Tensor) -> Tensor:
        calls.append(index)
        assert states.shape == (4, TOKENS, WIDTH)
        return states

    run(tiny_model(family), tiny_batch(family), [Edits(inside=spy)])
    assert calls == list(range(DEPTH))


def test_albert_layers_are_counted_by_call_although_they_share_one_module() -> None:
    model, batch = tiny_model("albert"), tiny_batch("albert")
    sites = Sites(model)
    assert len(sites.anatomy.layers) == 1
    output = PassRunner(model, sites).run(inputs_of(batch))
    modules = {id(module) for module, _, _ in output.record.layer_calls.values()}
    assert (len(output.record.layer_calls), len(modules)) == (DEPTH, 1)


def test_an_edit_of_one_albert_layer_leaves_the_states_below_alone() -> None:
    model, batch = tiny_model("albert"), tiny_batch("albert")
    plain = run(model, batch).hidden
    edited = run(model, batch, [Edits(hidden=lambda i, states: states + (i == 1))]).hidden
    assert [torch.equal(plain[i], edited[i]) for i in range(4)] == [True, False, False, False]


def test_xlnet_states_are_recorded_with_the_batch_first() -> None:
    model, batch = tiny_model("xlnet").eval(), tiny_batch("xlnet")
    output = run(model, batch)
    assert output.embedding.shape == (4, TOKENS, WIDTH)
    alone = run(model, {name: value[3:] for name, value in batch.items()})  # row 3 has pads on the left
    for layer in range(DEPTH + 1):
        torch.testing.assert_close(output.hidden[layer][3, 3:], alone.hidden[layer][0, 3:])


@pytest.mark.parametrize("family", FAMILIES)
def test_an_embedding_edit_equals_a_change_of_the_weight_matrix(family: str) -> None:
    batch = tiny_batch(family)
    model = tiny_model(family, dtype=torch.float64, dropout=0.1)
    table = model.get_input_embeddings().weight
    shift = torch.randn(table.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    edited = run(model, batch, [Edits(embedding=lambda states: states + shift[batch["input_ids"]])]).logits
    with torch.no_grad():
        table += shift
    assert torch.equal(run(model, batch).logits, edited)


# -- attention -----------------------------------------------------------------------------------------------------


def without_key(key: int) -> Edits:
    """Hides one token from all others, and from itself, in every layer."""

    def bias(index: int, states: Tensor, mask: Tensor | None) -> Tensor:
        hidden = torch.zeros(len(states), 1, states.shape[1], states.shape[1], dtype=states.dtype)
        hidden[..., key] = -1e4
        return hidden

    return Edits(attention=bias)


@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize("family", [family for family in WITH_BIAS if family != "deberta-v2-conv"])  # sees neighbors
def test_masking_a_key_removes_its_influence(family: str, padded: bool) -> None:
    model, batch = tiny_model(family), tiny_batch(family, padded=padded)
    other = {**batch, "input_ids": batch["input_ids"].clone()}
    other["input_ids"][:, 2] = 5 + (batch["input_ids"][:, 2] - 4) % 30
    assert not torch.equal(run(model, batch).logits, run(model, other).logits)
    assert torch.equal(run(model, batch, [without_key(2)]).logits, run(model, other, [without_key(2)]).logits)


@pytest.mark.parametrize("family", WITH_BIAS)
def test_an_attention_bias_keeps_padding_hidden(family: str) -> None:
    model, batch = tiny_model(family).eval(), tiny_batch(family, rows=1, padded=False)
    longer = {
        "input_ids": torch.cat([batch["input_ids"], torch.full((1, 2), PAD)], dim=1),
        "attention_mask": torch.cat([batch["attention_mask"], torch.zeros(1, 2, dtype=torch.long)], dim=1),
    }
    short, long = run(model, batch, [without_key(2)]).vector(), run(model, longer, [without_key(2)]).vector()
    torch.testing.assert_close(short, long)


@pytest.mark.parametrize("family", WITH_BIAS)
def test_a_bias_per_head_reaches_that_head(family: str) -> None:
    model, batch = tiny_model(family), tiny_batch(family)

    def bias(head: int | None) -> Edits:
        def edit(index: int, states: Tensor, mask: Tensor | None) -> Tensor:
            scores = torch.zeros(len(states), HEADS, states.shape[1], states.shape[1])
            scores[:, slice(None) if head is None else head, :, 2] = -1e4
            return scores

        return Edits(attention=edit)

    outputs = [run(model, batch, [bias(head)]).logits for head in (0, 1, None)]
    assert not torch.equal(outputs[0], outputs[1]) and not torch.equal(outputs[0], outputs[2])
    assert torch.equal(outputs[2], run(model, batch, [without_key(2)]).logits)


@pytest.mark.parametrize("family", WITH_BIAS)
def test_attention_biases_of_two_methods_add_up(family: str) -> None:
    model, batch = tiny_model(family), tiny_batch(family)
    together = run(model, batch, [an_edit("attention", 0.3), an_edit("attention", 0.7)]).logits
    torch.testing.assert_close(together, run(model, batch, [an_edit("attention", 1.0)]).logits)


@pytest.mark.parametrize("family", WITH_BIAS)
def test_a_gradient_reaches_the_attention_bias(family: str) -> None:
    bias = torch.zeros(4, 1, TOKENS, TOKENS, requires_grad=True)
    output = run(tiny_model(family), tiny_batch(family), [Edits(attention=lambda i, s, m: bias if i == 0 else None)])
    (gradient,) = torch.autograd.grad(output.logits.square().sum(), bias)
    assert gradient.abs().sum() > 0
    torch.testing.assert_close(gradient.sum(dim=-1), torch.zeros(4, 1, TOKENS), atol=1e-5, rtol=0.0)  # softmax


@pytest.mark.parametrize("family", WITH_BIAS)
def test_attention_edits_see_what_the_attention_reads(family: str) -> None:
    model, seen, read = tiny_model(family), [], []
    sites = Sites(model)
    blocks = [block for block, _ in sites.anatomy.attention_blocks()]
    for block in blocks:
        block.register_forward_pre_hook(
            lambda module, args, kwargs: read.append(args[0] if args else kwargs["hidden_states"]), with_kwargs=True
        )
    edit = Edits(
        attention=lambda index, states, mask: seen.append((index, states)),
        hidden=lambda index, states: states + index,
    )
    PassRunner(model, sites).run(inputs_of(tiny_batch(family)), [edit])
    assert [index for index, _ in seen] == list(range(DEPTH))
    assert [torch.equal(states, own) for (_, states), own in zip(seen, read, strict=True)] == [True] * DEPTH


def visible(family: str, layer: int, real: Tensor) -> Tensor:
    """Units that a layer's attention sees (batch, tokens, tokens); the local layers of ModernBERT look 2 tokens far."""
    pairs = real[:, None, :].expand(-1, TOKENS, -1)
    if family == "modernbert" and layer % 2:
        place = torch.arange(TOKENS)
        pairs = pairs & ((place[:, None] - place).abs() <= 2)
    return pairs


@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize("family", WITH_BIAS)
def test_attention_edits_see_the_mask_of_their_layer(family: str, padded: bool) -> None:
    batch, masks = tiny_batch(family, padded=padded), []
    edit = Edits(attention=lambda i, states, mask: masks.append(mask))
    run(tiny_model(family), batch, [edit])
    real = batch["attention_mask"].bool()
    for layer, mask in enumerate(masks):
        expected = visible(family, layer, real)
        if mask is None:
            assert expected.all(), "no mask means that everything is seen"
        else:
            assert not mask.is_floating_point() and mask.ndim == 4
            found = mask[:, 0].bool().expand(expected.shape)
            assert torch.equal(found[real], expected[real]), layer  # rows of padding differ by family


def test_attention_switched_to_eager_after_wrapping_is_refused_in_the_pass() -> None:
    model: Any = tiny_model("bert")
    sites = Sites(model)
    model.set_attn_implementation("eager")
    with pytest.raises(SiteUnavailable, match="attention implementation 'eager' ignores a bias"):
        PassRunner(model, sites).run(inputs_of(tiny_batch("bert")), [without_key(2)])


def test_attention_switched_to_eager_disturbs_no_pass_without_attention_edits() -> None:
    model: Any = tiny_model("bert")
    sites = Sites(model)
    model.set_attn_implementation("eager")
    PassRunner(model, sites).run(inputs_of(tiny_batch("bert")), [an_edit("hidden", 0.5)])


# -- DeBERTa: a bias by a method that is replaced while a layer runs ---------------------------------------------------


def replaced(model: nn.Module) -> list[str]:
    """Modules on which a method has been replaced."""
    name = KNOWN["deberta-v2"].bias_method.rpartition(".")[2]
    return [path for path, module in model.named_modules() if name in vars(module)]


@pytest.mark.parametrize("family", DEBERTA)
def test_the_method_is_replaced_on_the_running_layer_only(family: str) -> None:
    model: Any = tiny_model(family)
    found: list[list[str]] = []
    for layer in model.deberta.encoder.layer:
        layer.attention.register_forward_hook(lambda module, args, output: found.append(replaced(model)))
    run(model, tiny_batch(family), [without_key(2)])
    assert found == [[f"deberta.encoder.layer.{i}.attention.self"] for i in range(DEPTH)]


@pytest.mark.parametrize("family", DEBERTA)
def test_nothing_is_left_on_the_model_after_a_pass(family: str) -> None:
    model = tiny_model(family)
    run(model, tiny_batch(family), [without_key(2)])
    assert replaced(model) == []


@pytest.mark.parametrize("family", DEBERTA)
def test_an_exception_inside_a_layer_leaves_nothing_on_the_model(family: str) -> None:
    model: Any = tiny_model(family)
    batch = tiny_batch(family)
    expected = run(model, batch).logits
    layer, seen = model.deberta.encoder.layer[1], []

    def fail(module: nn.Module, args: Any) -> None:
        seen.extend(replaced(model))
        raise ArithmeticError("inside a layer")

    handle = layer.intermediate.register_forward_pre_hook(fail)
    with pytest.raises(ArithmeticError):
        run(model, batch, [without_key(2)])
    handle.remove()
    assert seen == ["deberta.encoder.layer.1.attention.self"] and replaced(model) == []
    assert torch.equal(run(model, batch).logits, expected)


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model))])
def test_a_copy_between_passes_is_a_plain_model(copied: Any) -> None:
    model, batch = tiny_model("deberta-v2").eval(), tiny_batch("deberta-v2")
    sites = Sites(model)
    runner = PassRunner(model, sites)
    runner.run(inputs_of(batch), [without_key(2)])
    twin = copied(model)
    assert torch.equal(twin(**inputs_of(batch)).logits, model(**inputs_of(batch)).logits)
    assert replaced(twin) == []


# -- a gradient with respect to the embedding under a frozen table -------------------------------------------------


@pytest.mark.parametrize("family", FAMILIES)
def test_leaf_embedding_gives_the_gradient_of_a_trained_table_under_a_frozen_one(family: str) -> None:
    found = []
    for frozen in (False, True):
        model, batch = tiny_model(family), tiny_batch(family)
        model.get_input_embeddings().weight.requires_grad_(not frozen)
        output = run(model, batch, leaf_embedding=True)
        (gradient,) = torch.autograd.grad(output.logits.square().sum(), output.embedding)
        found.append(gradient)
    assert found[0].abs().sum() > 0 and torch.equal(*found)


@pytest.mark.parametrize("family", FAMILIES)
def test_without_leaf_embedding_a_frozen_table_gives_no_gradient(family: str) -> None:
    model = tiny_model(family)
    model.get_input_embeddings().weight.requires_grad_(False)
    assert not run(model, tiny_batch(family)).embedding.requires_grad


# -- hooks ---------------------------------------------------------------------------------------------------------


def test_passes_do_not_nest() -> None:
    sites = Sites(tiny_model("bert"))
    with sites.active(), pytest.raises(RuntimeError, match="passes of one model do not nest"), sites.active():
        pass


def test_nothing_is_recorded_outside_a_pass() -> None:
    model, batch = tiny_model("bert").eval(), tiny_batch("bert")
    sites = Sites(model)
    with sites.active() as record:
        pass
    model(**inputs_of(batch))
    assert (record.embedding, record.hidden, record.pooled, record.last) == (None, {}, None, None)


@pytest.mark.parametrize("family", FAMILIES)
def test_close_removes_every_hook(family: str) -> None:
    model = tiny_model(family)
    Sites(model).close()
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())
