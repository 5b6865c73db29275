"""What the engine gives methods that act on weights: other weights in a pass, a part in updates, a look at the rows."""

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from dummies import (
    Climb,
    LogitPenalty,
    Reweighted,
    Ruled,
    RuledAgain,
    Suffix,
    Surveyor,
    Taught,
    Updates,
    ZeroInTheEnd,
)
from steadytune import HyPe, LoRA, Mixout, RegularizedModel, TopK
from steadytune.encoders import SiteUnavailable
from steadytune.functional import keyed_generator
from steadytune.methods import Method, MethodError, ParameterRule
from tiny import gradients, inputs_of, rows_of, tiny_batch, tiny_model
from tolerances import REPLAYED, SAME

CLOSE: dict[str, float] = {"rtol": SAME[torch.float64], "atol": SAME[torch.float64]}


def model_of(dropout: float = 0.1, family: str = "bert") -> Any:
    return tiny_model(family, dropout=dropout, dtype=torch.float64)


def step_of(wrapper: RegularizedModel, family: str = "bert") -> Any:
    torch.manual_seed(0)
    out = wrapper(**tiny_batch(family))
    out.loss.backward()
    return out


def with_matrices(model: Any, factor: float) -> Any:
    """A copy whose matrices are multiplied."""
    other = copy.deepcopy(model)
    with torch.no_grad():
        for parameter in other.parameters():
            if parameter.ndim > 1:
                parameter.mul_(factor)
    return other


# -- other weights in one pass ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", ["bert", "albert", "deberta-v2", "modernbert", "xlnet", "electra"])
def test_a_pass_with_other_weights_is_a_pass_of_a_model_that_has_them(family: str) -> None:
    model = model_of(family=family)
    other = with_matrices(model, 1.5)
    torch.manual_seed(0)
    batch = tiny_batch(family)
    expected = nn.functional.cross_entropy(other(**inputs_of(batch)).logits, batch["labels"])
    expected.backward()
    wrapper = RegularizedModel(model, [Reweighted()])
    out = step_of(wrapper, family)
    torch.testing.assert_close(out.loss.detach(), expected.detach(), **CLOSE)
    chain = {name: (1.5 if p.ndim > 1 else 1.0) * p.grad for name, p in other.named_parameters() if p.grad is not None}
    torch.testing.assert_close(gradients(model), chain, **CLOSE)


def test_the_weights_themselves_stay_and_evaluation_uses_them() -> None:
    model = model_of()
    before = copy.deepcopy(model)
    wrapper = RegularizedModel(model, [Reweighted()])
    step_of(wrapper)
    assert all(torch.equal(value, before.state_dict()[name]) for name, value in model.state_dict().items())
    inputs = inputs_of(tiny_batch("bert"))
    assert torch.equal(wrapper.eval()(**inputs).logits, before.eval()(**inputs).logits)


def test_a_resumed_pass_uses_the_weights_of_its_base() -> None:
    out = step_of(RegularizedModel(model_of(), [Reweighted(), Suffix(scale=0.0)]))
    assert float(out.terms["suffix"]) == pytest.approx(0.0, abs=REPLAYED)


@pytest.mark.filterwarnings("ignore:`gradient_checkpointing_enable`:FutureWarning")
def test_other_weights_are_refused_under_gradient_checkpointing() -> None:
    model = model_of()
    model.gradient_checkpointing_enable({"use_reentrant": False})
    with pytest.raises(SiteUnavailable, match=r"reweighted needs the site 'weights'.* switch it off"):
        RegularizedModel(model, [Reweighted()])


def test_a_teacher_has_other_weights_the_same_dropout_and_no_gradient() -> None:
    model = model_of()
    teacher = with_matrices(model, 0.5)
    torch.manual_seed(0)
    taught = teacher(**tiny_batch("bert")).logits.detach()
    torch.manual_seed(0)
    clean = copy.deepcopy(model)(**tiny_batch("bert")).logits.detach()
    out = step_of(RegularizedModel(model, [Taught()]))
    torch.testing.assert_close(out.terms["taught"], (clean - taught).square().mean(), **CLOSE)
    assert (out.passes.forward, out.passes.activation_gradient, out.passes.weight_gradient) == (2, 1, 1)


# -- a pass that is back-propagated early -----------------------------------------------------------------------------


@pytest.mark.parametrize("base", ["clean", "own"])
def test_a_settled_pass_gives_the_gradients_of_one_that_is_not(base: str) -> None:
    found = []
    for settle in (False, True):
        wrapper = RegularizedModel(model_of(), [Climb(settle=settle, base=base)])
        found.append((step_of(wrapper), gradients(wrapper)))
    (plain, expected), (settled, early) = found
    torch.testing.assert_close(early, expected, **CLOSE)
    torch.testing.assert_close(settled.loss.detach(), plain.loss.detach(), **CLOSE)
    assert [out.passes.units for out in (plain, settled)] == [7, 6]


def test_the_clean_pass_is_not_settled_while_another_method_may_need_it() -> None:
    out = step_of(RegularizedModel(model_of(), [Climb(), LogitPenalty()]))
    assert out.passes.units == 7


def test_a_settled_pass_beside_noise_alone_is_settled() -> None:
    out = step_of(RegularizedModel(model_of(), [Climb(), HyPe(noise_std=0.1)]))
    assert out.passes.units == 6


def test_settled_gradients_add_up_over_accumulated_batches() -> None:
    def gradient(sizes: list[int]) -> dict[str, Tensor]:
        wrapper = RegularizedModel(model_of(dropout=0.0), [Climb(size=0.0)])
        for output in wrapper.accumulate(rows_of(tiny_batch("bert", rows=8), sizes)):
            output.loss.backward()
        return gradients(wrapper)

    torch.testing.assert_close(gradient([5, 3]), gradient([8]), **CLOSE)


@pytest.mark.parametrize("others", [[], [LogitPenalty()]], ids=["alone", "with a clean pass"])
def test_a_pass_as_clean_before_the_clean_one_draws_from_the_main_stream_once(others: list[Method]) -> None:
    torch.manual_seed(0)
    model_of()(**tiny_batch("bert"))
    expected = torch.get_rng_state()
    step_of(RegularizedModel(model_of(), [Climb(base="own"), *others]))
    assert torch.equal(torch.get_rng_state(), expected)


def test_a_clean_pass_that_comes_later_has_the_dropout_of_the_pass_as_clean() -> None:
    plain = step_of(RegularizedModel(model_of(), [LogitPenalty()]))
    late = step_of(RegularizedModel(model_of(), [Climb(base="own"), LogitPenalty()]))
    assert torch.equal(late.terms["logit_penalty"], plain.terms["logit_penalty"])


# -- a part in optimizer steps ----------------------------------------------------------------------------------------


def trained(wrapper: RegularizedModel, optimizer: torch.optim.Optimizer, steps: int = 1) -> None:
    for _ in range(steps):
        step_of(wrapper)
        wrapper.clip_grad_norm_(0.1)
        optimizer.step()
        optimizer.zero_grad()


def test_a_method_sees_clipped_gradients_before_and_weights_after_a_step() -> None:
    plain, method = RegularizedModel(model_of()), Updates()
    wrapper = RegularizedModel(model_of(), [method])
    for one, rate in ((plain, 0.5), (wrapper, 1.0)):
        optimizer = torch.optim.SGD(one.parameter_groups(lr=rate))
        one.attach(optimizer, total_updates=7)
        trained(one, optimizer)
    assert method.norms == pytest.approx([0.1])
    expected = {name: p + (p.ndim == 1) for name, p in plain.model.named_parameters()}
    torch.testing.assert_close(dict(wrapper.model.named_parameters()), expected, **CLOSE)


def test_a_method_is_told_number_length_and_learning_rates() -> None:
    method = Updates()
    wrapper = RegularizedModel(model_of(), [method, Ruled()])
    optimizer = torch.optim.SGD(wrapper.parameter_groups(lr=0.5))
    wrapper.attach(optimizer, total_updates=7)
    trained(wrapper, optimizer, steps=3)
    assert [(now.number, now.total) for now in method.seen] == [(0, 7), (1, 7), (2, 7)]
    rates = method.seen[0].learning_rates
    assert {rate for name, rate in rates.items() if name.startswith("classifier")} == {0.25}
    assert {rate for name, rate in rates.items() if not name.startswith("classifier")} == {0.5}
    assert wrapper.drain_telemetry()["updates/steps_seen"] == pytest.approx(2.0)


def test_a_stream_of_an_update_is_named_by_its_number_and_not_by_the_process() -> None:
    method = Updates()
    wrapper = RegularizedModel(model_of(), [method], seed=3)
    optimizer = torch.optim.SGD(wrapper.parameter_groups(lr=0.5))
    wrapper.attach(optimizer)
    trained(wrapper, optimizer, steps=2)
    for number, now in enumerate(method.seen):
        expected = keyed_generator("cpu", 3, "updates", "update", number, "a").initial_seed()
        assert now.generator("a").initial_seed() == expected


def test_training_without_attaching_the_optimizer_is_refused() -> None:
    with pytest.raises(MethodError) as caught:
        step_of(RegularizedModel(model_of(), [Updates()]))
    assert str(caught.value) == "updates acts in optimizer steps; call attach(optimizer) before training."


@pytest.mark.parametrize("end", ["detach", "close"])
def test_a_detached_method_acts_no_more(end: str) -> None:
    method = Updates()
    wrapper = RegularizedModel(model_of(), [method])
    optimizer = torch.optim.SGD(wrapper.parameter_groups(lr=0.5))
    wrapper.attach(optimizer)
    wrapper.attach(optimizer)
    trained(wrapper, optimizer)
    getattr(wrapper, end)()
    optimizer.step()
    assert len(method.seen) == 1


def test_the_number_of_updates_survives_a_checkpoint(tmp_path: Path) -> None:
    wrapper = RegularizedModel(model_of(), [Updates()])
    optimizer = torch.optim.SGD(wrapper.parameter_groups(lr=0.5))
    wrapper.attach(optimizer)
    trained(wrapper, optimizer, steps=2)
    wrapper.save_state(tmp_path)
    method = Updates()
    resumed = RegularizedModel(model_of(), [method])
    again = torch.optim.SGD(resumed.parameter_groups(lr=0.5))
    resumed.attach(again)
    resumed.load_state(tmp_path)
    trained(resumed, again)
    assert [now.number for now in method.seen] == [2]


def test_a_step_that_a_fused_optimizer_skips_for_an_overflow_is_no_update() -> None:
    method = Updates()
    wrapper = RegularizedModel(model_of(), [method])
    optimizer: Any = torch.optim.SGD(wrapper.parameter_groups(lr=0.5), fused=True)
    wrapper.attach(optimizer)
    step_of(wrapper)
    for overflow in (1.0, 0.0):
        optimizer.found_inf = torch.tensor(overflow)  # as torch.amp.GradScaler leaves it during a step
        optimizer.step()
    assert [now.number for now in method.seen] == [0]


# -- a method that meets a model that another one has changed ---------------------------------------------------------


def test_a_method_is_refused_if_another_one_leaves_nothing_to_act_on() -> None:
    with pytest.raises(MethodError, match="mixout"):
        RegularizedModel(model_of(), [Mixout(), TopK(layers=0)])


def test_an_optimizer_without_adapters_is_refused() -> None:
    model = model_of()
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1)
    with pytest.raises(MethodError, match=r"the optimizer lacks .*lora_A.*, which lora trains"):
        RegularizedModel(model, [LoRA()]).attach(optimizer)


# -- learning rates and decay of single parameters --------------------------------------------------------------------


def test_a_rule_parts_the_groups_and_leaves_every_parameter_in_one() -> None:
    wrapper = RegularizedModel(model_of(), [Ruled()])
    groups = wrapper.parameter_groups(lr=0.1, weight_decay=0.01)
    found = [(g["name"], g["lr"], g["weight_decay"], len(g["params"])) for g in groups]
    whole = len(list(wrapper.model.parameters()))
    assert [(*entry[:1], pytest.approx(entry[1]), entry[2]) for entry in found] == [
        ("encoder", 0.1, 0.01),
        ("encoder", 0.05, 0.0),
        ("encoder, no decay", 0.1, 0.0),
        ("encoder, no decay", 0.05, 0.0),
    ]
    assert sum(entry[3] for entry in found) == whole


def test_learning_rates_of_two_methods_multiply() -> None:
    wrapper = RegularizedModel(model_of(), [Ruled(), RuledAgain(rule=ParameterRule(0.5))])
    rates = {g["lr"] for g in wrapper.parameter_groups(lr=0.4, weight_decay=0.01)}
    assert rates == {0.4, 0.1}


def test_two_methods_that_want_other_decay_are_refused() -> None:
    with pytest.raises(MethodError) as caught:
        RegularizedModel(model_of(), [Ruled(), RuledAgain(rule=ParameterRule(1.0, 0.3))])
    assert str(caught.value) == (
        "ruled and ruled_again want different weight decay for classifier.weight; leave one of them out."
    )


def test_an_optimizer_that_does_not_follow_a_rule_is_refused() -> None:
    wrapper = RegularizedModel(model_of(), [Ruled()])
    with pytest.raises(MethodError, match=r"does not give classifier\.weight the learning rate"):
        wrapper.attach(torch.optim.AdamW(wrapper.model.parameters(), lr=0.1))


# -- a look at the rows before training -------------------------------------------------------------------------------


def test_a_survey_sees_every_row_alone_and_without_dropout() -> None:
    model, method, batch = model_of(), Surveyor(), tiny_batch("bert", rows=6)
    wrapper = RegularizedModel(model, [method])
    assert wrapper.wants_survey
    wrapper.survey(rows_of(batch, [4, 2]))
    assert not wrapper.wants_survey
    assert (wrapper.spent.units, model.training) == (6.0, True)
    expected: dict[str, Any] = {}
    reference = copy.deepcopy(model).eval()
    for row in rows_of(batch, [1] * 6):
        reference.zero_grad()
        nn.functional.cross_entropy(reference(**inputs_of(row)).logits, row["labels"]).backward()
        for name, gradient in gradients(reference).items():
            expected[name] = expected.get(name, 0) + gradient**2
    torch.testing.assert_close(method.found, expected, **CLOSE)


def test_training_without_the_survey_is_refused() -> None:
    with pytest.raises(MethodError, match="surveyor looks at the training rows first; give their batches to survey"):
        step_of(RegularizedModel(model_of(), [Surveyor()]))


def test_a_survey_is_remembered_by_a_checkpoint(tmp_path: Path) -> None:
    wrapper = RegularizedModel(model_of(), [Surveyor()])
    wrapper.survey([tiny_batch("bert")])
    wrapper.save_state(tmp_path)
    resumed = RegularizedModel(model_of(), [Surveyor()])
    resumed.load_state(tmp_path)
    assert not resumed.wants_survey


# -- the end of training ----------------------------------------------------------------------------------------------


def test_offered_weights_take_their_place_in_the_end_and_can_be_exchanged_back() -> None:
    model = model_of()
    before = model.classifier.weight.detach().clone()
    wrapper = RegularizedModel(model, [ZeroInTheEnd()])
    wrapper.finish()
    assert not model.classifier.weight.any()
    assert wrapper.swap_averages()
    assert torch.equal(model.classifier.weight, before)


def test_finishing_twice_finishes_once_and_training_is_over() -> None:
    method = ZeroInTheEnd()
    wrapper = RegularizedModel(model_of(), [method])
    wrapper.finish()
    wrapper.finish()
    assert method.finished == [True]
    with pytest.raises(RuntimeError, match="has ended this training"):
        step_of(wrapper)


def test_finishing_changes_nothing_if_no_method_has_anything_to_do() -> None:
    wrapper = RegularizedModel(model_of(), [HyPe(noise_std=0.1)])
    wrapper.finish()
    assert torch.isfinite(step_of(wrapper).loss)


def test_a_model_that_is_not_plain_yet_is_not_saved(tmp_path: Path) -> None:
    wrapper = RegularizedModel(model_of(), [ZeroInTheEnd()])
    with pytest.raises(MethodError, match="zero_in_the_end has not finished; call finish"):
        wrapper.save_pretrained(tmp_path)
    wrapper.finish()
    wrapper.save_pretrained(tmp_path)
    assert (tmp_path / "model.safetensors").exists()


def test_buffers_of_methods_are_not_sent_between_processes() -> None:
    wrapper = RegularizedModel(model_of(), [ZeroInTheEnd()])
    assert wrapper._ddp_params_and_buffers_to_ignore == ["method_modules.zero_in_the_end.weight"]
