from typing import Any

import pytest
import torch
from torch import Tensor

from steadytune.encoders import Edits, PassOutput, PassRunner, RandomState, Sites, SiteUnavailable, ambient_autocast
from steadytune.encoders.sites import first_tensor
from tiny import FAMILIES, inputs_of, tiny_batch, tiny_model

DEPTH = 3
EVERY_LAYER = frozenset(range(DEPTH))


def runner_of(family: str, **options: Any) -> PassRunner:
    model = tiny_model(family, **options)
    return PassRunner(model, Sites(model))


def first_layer(family: str) -> int:
    """DeBERTa's convolution mixes the embedding output in above layer 0."""
    return 1 if family == "deberta-v2-conv" else 0


def states_above(output: PassOutput, layer: int) -> list[Tensor]:
    return [output.hidden[i] for i in range(layer + 1, DEPTH + 1)]


@pytest.mark.parametrize("family", FAMILIES)
def test_fresh_passes_differ_in_their_dropout(family: str) -> None:
    runner, inputs = runner_of(family), inputs_of(tiny_batch(family))
    assert not torch.equal(runner.run(inputs).logits, runner.run(inputs).logits)


@pytest.mark.parametrize("family", FAMILIES)
def test_replay_without_edit_has_identical_logits(family: str) -> None:
    runner, inputs = runner_of(family), inputs_of(tiny_batch(family))
    first = runner.run(inputs)
    assert torch.equal(runner.run(inputs, start=first.start).logits, first.logits)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_seeded_or_replayed_pass_leaves_the_main_stream_alone(family: str) -> None:
    runner, inputs = runner_of(family), inputs_of(tiny_batch(family))
    first = runner.run(inputs)
    before = torch.get_rng_state()
    runner.run(inputs, start=first.start)
    runner.run(inputs, start=17)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_resumed_pass_without_edit_has_identical_states(family: str) -> None:
    runner, inputs = runner_of(family), inputs_of(tiny_batch(family))
    base = runner.run(inputs, keep_random_state_at=EVERY_LAYER)
    for layer in range(first_layer(family), DEPTH):
        state = base.record.random_states[layer]
        again = runner.resume(base, layer, base.hidden[layer], start=state)
        for one, other in zip(states_above(again, layer), states_above(base, layer), strict=True):
            assert torch.equal(one, other), layer


@pytest.mark.parametrize("family", FAMILIES)
def test_a_resumed_pass_equals_a_whole_pass_with_the_same_edit(family: str) -> None:
    runner, inputs = runner_of(family), inputs_of(tiny_batch(family))
    base = runner.run(inputs, keep_random_state_at=EVERY_LAYER)
    for layer in range(first_layer(family), DEPTH):
        noise = 0.1 * torch.randn(base.hidden[layer].shape)
        edit = Edits(hidden=lambda i, s, at=layer, by=noise: s + by if i == at else s)
        whole = runner.run(inputs, [edit], start=base.start)
        state = base.record.random_states[layer]
        part = runner.resume(base, layer, base.hidden[layer] + noise, start=state)
        for one, other in zip(states_above(part, layer), states_above(whole, layer), strict=True):
            assert torch.equal(one, other), layer


@pytest.mark.parametrize("layer", range(DEPTH))
def test_a_resumed_pass_of_modernbert_applies_the_final_norm(layer: int) -> None:
    model, inputs = tiny_model("modernbert"), inputs_of(tiny_batch("modernbert"))
    runner = PassRunner(model, Sites(model))
    base = runner.run(inputs, keep_random_state_at=EVERY_LAYER)
    kept: list[Tensor] = []
    handle = model.model.layers[-1].register_forward_hook(
        lambda module, args, output: kept.append(first_tensor(output))
    )
    again = runner.resume(base, layer, 2 * base.hidden[layer], start=base.record.random_states[layer])
    handle.remove()
    (top,) = kept
    assert not torch.allclose(top, again.hidden[DEPTH])
    assert torch.equal(model.model.final_norm(top), again.hidden[DEPTH])


def test_the_top_of_a_pass_of_modernbert_is_what_leaves_the_encoder() -> None:
    output = runner_of("modernbert").run(inputs_of(tiny_batch("modernbert")))
    assert output.record.last is not None
    assert torch.equal(output.hidden[DEPTH], output.record.last)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_resumed_pass_carries_the_gradient_to_the_states_that_entered_it(family: str) -> None:
    runner, inputs = runner_of(family), inputs_of(tiny_batch(family))
    base = runner.run(inputs, keep_random_state_at=EVERY_LAYER)
    again = runner.resume(base, 1, base.hidden[1], start=base.record.random_states[1])
    for output in (base, again):
        loss = output.hidden[DEPTH].square().sum()
        output.record.pooled = torch.autograd.grad(loss, base.hidden[1], retain_graph=True)[0]
    assert base.record.pooled is not None and base.record.pooled.abs().sum() > 0
    torch.testing.assert_close(base.record.pooled, again.record.pooled)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_resumed_pass_leaves_the_main_stream_alone(family: str) -> None:
    runner, inputs = runner_of(family), inputs_of(tiny_batch(family))
    base = runner.run(inputs, keep_random_state_at=EVERY_LAYER)
    before = torch.get_rng_state()
    runner.resume(base, 1, base.hidden[1], start=base.record.random_states[1])
    assert torch.equal(torch.get_rng_state(), before)


def test_random_states_are_kept_only_where_asked_for() -> None:
    output = runner_of("bert").run(inputs_of(tiny_batch("bert")), keep_random_state_at=frozenset({2}))
    assert list(output.record.random_states) == [2]


def test_deberta_with_a_convolution_refuses_to_resume_at_layer_0() -> None:
    runner, inputs = runner_of("deberta-v2-conv"), inputs_of(tiny_batch("deberta-v2-conv"))
    base = runner.run(inputs, keep_random_state_at=EVERY_LAYER)
    with pytest.raises(SiteUnavailable, match="deberta-v2 can be resumed at layers 1 to 2; got 0"):
        runner.resume(base, 0, base.hidden[0], start=base.record.random_states[0])


def test_there_is_nothing_to_resume_above_the_last_layer() -> None:
    runner = runner_of("bert")
    base = runner.run(inputs_of(tiny_batch("bert")))
    with pytest.raises(SiteUnavailable, match="layers 0 to 2; got 3"):
        runner.resume(base, DEPTH, base.hidden[DEPTH], start=None)


def test_edits_act_above_the_layer_of_a_resumed_pass_and_not_at_it() -> None:
    runner = runner_of("bert", dropout=0.0)
    base = runner.run(inputs_of(tiny_batch("bert")))
    seen: list[int] = []
    edit = Edits(hidden=lambda i, states: (seen.append(i), states)[1])
    runner.resume(base, 1, base.hidden[1], [edit], start=None)
    assert seen == [2]


def test_an_attention_edit_is_made_again_in_a_resumed_pass_and_not_twice() -> None:
    def bias(index: int, states: Tensor, mask: Tensor | None) -> Tensor:
        return (states @ states.mT)[:, None]

    runner = runner_of("bert")
    edits = [Edits(attention=bias)]
    base = runner.run(inputs_of(tiny_batch("bert")), edits, keep_random_state_at=EVERY_LAYER)
    again = runner.resume(base, 1, base.hidden[1], edits, start=base.record.random_states[1])
    assert torch.equal(again.hidden[DEPTH], base.hidden[DEPTH])


def test_a_pass_with_other_weights_in_between_is_not_seen_by_a_replay() -> None:
    runner, inputs = runner_of("bert"), inputs_of(tiny_batch("bert"))
    first = runner.run(inputs)
    runner.run(inputs, start=5)
    assert torch.equal(runner.run(inputs, start=first.start).logits, first.logits)


def test_ambient_autocast_is_entered_again_inside_a_block_without_it() -> None:
    device = torch.device("cpu")
    with torch.autocast("cpu", dtype=torch.bfloat16):
        context, dtype = ambient_autocast(device)
        with torch.autocast("cpu", enabled=False), context:
            assert (torch.ones(1, 1) @ torch.ones(1, 1)).dtype == torch.bfloat16
    assert dtype == torch.bfloat16


def test_without_autocast_there_is_no_compute_dtype() -> None:
    assert ambient_autocast(torch.device("cpu"))[1] is None


def test_an_exception_inside_a_pass_ends_it_and_gives_the_stream_back() -> None:
    model = tiny_model("bert")
    runner, inputs = PassRunner(model, Sites(model)), inputs_of(tiny_batch("bert"))

    def fail(index: int, states: Tensor) -> Tensor:
        raise ArithmeticError(index)

    before = torch.get_rng_state()
    with pytest.raises(ArithmeticError):
        runner.run(inputs, [Edits(inside=fail)], start=3)
    assert torch.equal(torch.get_rng_state(), before)
    first = runner.run(inputs, start=RandomState.capture(torch.device("cpu")))
    assert torch.equal(model(**inputs).logits, first.logits)
