"""Every pair of methods, and all of them together, against one straight line of code; and what a stack costs."""

import itertools
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from equivalence.straight_line import (
    CLOSE,
    DEPTH,
    SEED,
    assert_a_step_is_the_straight_line,
    batch,
    gradients,
    tiny_bert,
    trained,
    wrapped,
)
from steadytune import ASA, CAT, LNSR, SCL, HyPe, RegularizedModel
from steadytune.methods import Method
from tiny import FAMILIES, rows_of, tiny_batch, tiny_model
from tolerances import REPLAYED

PARTS: dict[str, Method] = {
    "scl": SCL(weight=0.6),
    "cat": CAT(weight=0.3, epsilon=0.5, projection_dim=8),
    "hype": HyPe(noise_std=0.1),
    "lnsr": LNSR(weight=0.7, noise_std=0.3, injection_layer=1, draws=2),
    "asa": ASA(weight=0.8),
}
PAIRS = {" and ".join(pair): [PARTS[key] for key in pair] for pair in itertools.combinations(PARTS, 2)}
STACKS: dict[str, list[Method]] = {
    **PAIRS,
    "all": list(PARTS.values()),
    "all, noise inside too": [
        PARTS["scl"],
        PARTS["cat"],
        HyPe(noise_std=0.1, place="both", relative=True),
        LNSR(),
        ASA(),
    ],
    "all, other settings": [
        ASA(weight=0.3, share_dropout=True, layers=(1,), protect="none"),
        LNSR(weight=2.0, noise_std=0.3, dropout="fresh", normalize=False),
        HyPe(noise_std=0.1, layers=(0, 2), distribution="uniform"),
        CAT(weight=0.1, epsilon=0.05, norm="linf", projection_dim=3),
        SCL(weight=0.9, temperature=0.5),
    ],
    "adversarial training and all others": [PARTS[key] for key in ("scl", "hype", "lnsr", "asa")] + [CAT(weight=0)],
}
every_stack = pytest.mark.parametrize("name", STACKS)


def test_every_pair_of_the_five_core_methods_is_a_stack() -> None:
    assert set(PARTS) == {"scl", "cat", "hype", "lnsr", "asa"}
    assert len(PAIRS) == 5 * 4 / 2


@pytest.mark.parametrize("dropout", [0.0, 0.1])
@every_stack
def test_value_and_gradient_equal_the_straight_line(name: str, dropout: float) -> None:
    assert_a_step_is_the_straight_line(STACKS[name], dropout, steps=1)


@every_stack
def test_loss_is_the_sum_of_its_reported_parts_with_the_reported_coefficients(name: str) -> None:
    wrapper = wrapped(0.1, STACKS[name])
    out, factors = wrapper(**batch()), wrapper.coefficients
    expected = factors.task * out.task_loss + sum(factors.terms[key] * term for key, term in out.terms.items())
    torch.testing.assert_close(out.loss.detach(), expected, **CLOSE)


def test_coefficients_of_one_convex_method_beside_noise_are_those_of_its_paper() -> None:
    for key, share in (("scl", 0.6), ("cat", 0.3)):
        found = wrapped(0.0, [PARTS["hype"], PARTS[key]]).coefficients
        assert (found.task, found.terms) == (pytest.approx(1 - share), {key: pytest.approx(share)})


def test_coefficients_of_all_methods_keep_the_ratio_of_each_term_to_the_label_loss() -> None:
    found = wrapped(0.0, STACKS["all"]).coefficients
    odds = {"scl": 0.6 / 0.4, "cat": 0.3 / 0.7, "lnsr": 0.7, "asa": 0.8}
    assert found.task == pytest.approx(1 / (1 + 0.6 / 0.4 + 0.3 / 0.7))
    assert {key: factor / found.task for key, factor in found.terms.items()} == pytest.approx(odds)


def test_the_order_of_the_list_changes_nothing() -> None:
    found = []
    for methods in (STACKS["all"], STACKS["all"][::-1]):
        wrapper = wrapped(0.1, methods)
        own = dict(wrapper.method_modules.named_parameters())
        with torch.no_grad():
            for name in own:  # made apart from each other, but enlarged in the order of the list
                own[name].copy_(torch.linspace(-1, 1, own[name].numel()).view_as(own[name]))
        torch.manual_seed(0)
        loss = wrapper(**batch()).loss
        loss.backward()
        found.append({"loss": loss.detach(), **gradients(wrapper.named_parameters())})
    torch.testing.assert_close(found[1], found[0], **CLOSE)


def test_every_method_draws_its_own_parameters_whoever_else_is_in_the_stack() -> None:
    stack = RegularizedModel(tiny_bert(0.1), STACKS["all"], seed=SEED).method_modules
    for key in ("cat", "asa"):
        alone = RegularizedModel(tiny_bert(0.1), [PARTS[key]], seed=SEED).method_modules
        torch.testing.assert_close(dict(stack[key].state_dict()), dict(alone[key].state_dict()), rtol=0, atol=0)


@pytest.mark.filterwarnings("ignore:`gradient_checkpointing_enable`:FutureWarning")  # also under its old name
@pytest.mark.parametrize("name", ["all", "all, noise inside too", "all, other settings"])
def test_gradient_checkpointing_changes_no_gradient_of_a_stack(name: str) -> None:
    found = []
    for recomputed in (False, True):
        wrapper = wrapped(0.1, STACKS[name])
        if recomputed:
            wrapper.model.gradient_checkpointing_enable({"use_reentrant": False})
        torch.manual_seed(0)
        wrapper(**batch()).loss.backward()
        found.append(gradients(wrapper.named_parameters()))
    torch.testing.assert_close(found[1], found[0], rtol=REPLAYED, atol=REPLAYED)


def test_a_contrast_over_accumulated_batches_stands_in_a_stack_as_it_stands_alone() -> None:
    contrast = SCL(weight=0.6, gather_across_accumulation=True)
    noise, others = PARTS["hype"], [PARTS[key] for key in ("cat", "lnsr", "asa")]
    o, o_cat = 0.6 / 0.4, 0.3 / 0.7

    def gradient(methods: Sequence[Method], whole: float) -> Tensor:
        """Of the sum before it is divided by the whole, 1 + Σ o."""
        wrapper = wrapped(0.1, methods)
        torch.manual_seed(0)
        for output in wrapper.accumulate(rows_of(batch(), [3, 3])):
            output.loss.backward()
        return whole * torch.cat([p.grad.flatten() for p in wrapper.model.parameters()])

    of_the_contrast = gradient([noise, contrast], 1 + o) - gradient([noise], 1)
    expected = of_the_contrast + gradient([noise, *others], 1 + o_cat)
    torch.testing.assert_close(gradient([noise, contrast, *others], 1 + o + o_cat), expected, **CLOSE)


# -- every family -----------------------------------------------------------------------------------------------------

WITHOUT_ATTENTION_SITE = ("mpnet", "xlnet")


@pytest.mark.parametrize("family", FAMILIES)
def test_every_term_of_a_stack_has_the_value_that_it_has_alone(family: str) -> None:
    parts = [method for key, method in PARTS.items() if not (key == "asa" and family in WITHOUT_ATTENTION_SITE)]
    noise = PARTS["hype"]

    def terms(methods: Sequence[Method]) -> dict[str, Tensor]:
        torch.manual_seed(0)
        out = RegularizedModel(tiny_model(family, dtype=torch.float64), methods, seed=SEED)(**tiny_batch(family))
        return dict(out.terms)

    alone = [terms([noise, method]) for method in parts if method is not noise]
    expected = {key: term for found in alone for key, term in found.items()}
    assert len(expected) == len(parts) - 1
    torch.testing.assert_close(terms(parts), expected, rtol=REPLAYED, atol=REPLAYED)


# -- cost -------------------------------------------------------------------------------------------------------------

RESUMED = 2 * (DEPTH - 1) / DEPTH  # two draws, from layer 1 of 3
EXTRA: dict[str, tuple[float, float, float]] = {  # forward passes, gradients of activations, gradients of weights
    "scl": (0, 0, 0),
    "hype": (0, 0, 0),
    "cat": (1, 1 + 1, 1),
    "lnsr": (RESUMED, RESUMED, RESUMED),
    "asa": (1, 1, 1),
}
KEYS = [list(pair) for pair in itertools.combinations(PARTS, 2)] + [list(PARTS)]


def predicted(keys: Sequence[str]) -> list[float]:
    """One shared clean pass and what each method adds."""
    return [1 + sum(EXTRA[key][kind] for key in keys) for kind in range(3)]


@pytest.mark.parametrize("keys", KEYS, ids=" and ".join)
def test_passes_of_a_stack_are_one_clean_pass_and_what_each_method_adds(keys: list[str]) -> None:
    passes = wrapped(0.1, [PARTS[key] for key in keys])(**batch()).passes
    found = [passes.forward, passes.activation_gradient, passes.weight_gradient]
    assert found == pytest.approx(predicted(keys))


def test_half_a_resumed_pass_beside_cat_and_scl_costs_half_a_pass() -> None:
    model = tiny_model("bert", depth=4)
    passes = RegularizedModel(model, [CAT(), SCL(), LNSR(injection_layer=2)])(**tiny_batch("bert")).passes
    assert (passes.forward, passes.activation_gradient, passes.weight_gradient) == (2.5, 3.5, 2.5)


@pytest.mark.parametrize("keys", KEYS, ids=" and ".join)
def test_the_counted_passes_are_those_that_the_layers_saw(keys: list[str]) -> None:
    wrapper = wrapped(0.1, [PARTS[key] for key in keys])
    forwards, backwards = [0], [0]

    def count(module: nn.Module, args: Any, output: Tensor) -> None:
        forwards[0] += 1
        output.register_hook(lambda gradient: backwards.__setitem__(0, backwards[0] + 1))

    for layer in wrapper.model.bert.encoder.layer:
        layer.intermediate.dense.register_forward_hook(count)
    wrapper(**batch()).loss.backward()
    forward, backward, _ = predicted(keys)
    assert [forwards[0], backwards[0]] == pytest.approx([DEPTH * forward, DEPTH * backward])


# -- a method at its null setting is not there ------------------------------------------------------------------------

NULL: dict[str, tuple[str, Method]] = {
    "scl": ("scl", SCL(weight=0)),
    "hype": ("hype", HyPe(noise_std=0)),
    "lnsr without weight": ("lnsr", LNSR(weight=0)),
    "lnsr without noise": ("lnsr", LNSR(noise_std=0)),
    "asa": ("asa", ASA(weight=0)),
}


@pytest.mark.parametrize("name", NULL)
def test_a_null_setting_beside_others_changes_no_bit(name: str) -> None:
    key, null = NULL[name]
    others = [method for other, method in PARTS.items() if other != key]

    def after_training(methods: Sequence[Method]) -> dict[str, Tensor]:
        wrapper = RegularizedModel(tiny_bert(0.1, torch.float32), methods, seed=SEED)
        found = trained(wrapper, lambda data: wrapper(**data).loss, steps=2)
        return found | {"units": torch.tensor(wrapper.spent.units)}

    without, beside = after_training(others), after_training([null, *others])
    assert beside.keys() == without.keys()
    assert [part for part in without if not torch.equal(beside[part], without[part])] == []


def test_cat_has_no_null_setting_and_trains_adversarially_at_weight_0() -> None:
    plain, wrapper = tiny_bert(0.0), RegularizedModel(tiny_bert(0.0), [CAT(weight=0, epsilon=0.5)])
    expected = trained(plain, lambda data: plain(**data).loss)["losses"]
    found = trained(wrapper, lambda data: wrapper(**data).loss)["losses"]
    assert bool((found > expected).all())
