"""Every pair of a core method and a rival, and every pair that is refused: the table of pairs against what happens."""

import itertools
import math
from collections.abc import Sequence

import pytest
import torch

from steadytune import RegularizedModel
from steadytune.methods import METHODS, Method, MethodError, method_class
from steadytune.methods.cards import compatibility_rules, compatibility_table
from steadytune.methods.compatibility import CORE, known_pairings, pairing
from tiny import tiny_batch, tiny_model

RIVALS = (
    *("rdrop", "r3f", "pgd", "freelb", "smart", "mixout"),
    *("child_tuning", "reinit", "l2sp", "recadam", "llrd", "averaging"),
)
"""Those that a comparison must have."""

SECOND = ("sam", "tmix")
"""Of the second tier, those that add passes."""

EXTRA: dict[str, tuple[float, float, float]] = {  # forward passes, gradients of activations, gradients of weights
    "cat": (1, 2, 1),
    "lnsr": (1, 1, 1),
    "asa": (1, 1, 1),
    "rdrop": (1, 1, 1),
    "r3f": (1, 1, 1),
    "pgd": (3, 4, 1),  # a gradient of the clean pass, two probes and the last pass
    "freelb": (3, 3, 3),  # beside a clean pass that another method asks for
    "smart": (3, 2, 1),  # a probe, the pass, a teacher
    "tmix": (1, 1, 1),  # beside a clean pass that another method asks for
}
"""What a method adds to one clean pass, in a stack in which no graph can be let go of early."""


def settings(key: str) -> Method:
    return method_class(key)(**({"noise_std": 0.05} if key in ("hype", "r3f") else {}))


def predicted(keys: Sequence[str]) -> list[float]:
    counts = [1 + sum(EXTRA.get(key, (0, 0, 0))[kind] for key in keys) for kind in range(3)]
    if set(keys) <= {"hype", "freelb", "pgd"}:  # alone with noise: the ascent shares its traversals with the weights
        counts[1] -= "pgd" in keys
        counts = [count - ("freelb" in keys) for count in counts]
    if set(keys) <= {"hype", "tmix"}:
        counts = [count - ("tmix" in keys) for count in counts]
    return [count * (2 if "sam" in keys else 1) for count in counts]


def trained(keys: Sequence[str], steps: int) -> tuple[RegularizedModel, list[float]]:
    wrapper = RegularizedModel(tiny_model("bert"), [settings(key) for key in keys])
    optimizer = torch.optim.AdamW(wrapper.parameter_groups(lr=1e-3))
    wrapper.attach(optimizer, total_updates=steps)
    if wrapper.wants_survey:
        wrapper.survey([tiny_batch("bert")])
        wrapper.spent = type(wrapper.spent)()
    losses = []
    for step in range(steps):
        out = wrapper(**tiny_batch("bert", seed=step))
        out.loss.backward()
        wrapper.clip_grad_norm_(1.0)
        optimizer.step()
        optimizer.zero_grad()
        losses.append(float(out.loss))
    return wrapper, losses


PAIRS = [pair for pair in itertools.product(CORE, RIVALS + SECOND) if pairing(*pair).verdict != "forbidden"]


@pytest.mark.parametrize("pair", PAIRS, ids=" and ".join)
def test_a_core_method_and_a_rival_train_five_steps_with_the_predicted_passes(pair: tuple[str, str]) -> None:
    wrapper, losses = trained(pair, steps=5)
    assert all(map(math.isfinite, losses))
    assert all(torch.isfinite(parameter).all() for parameter in wrapper.model.parameters())
    spent = wrapper.spent
    found = [spent.forward / 5, spent.activation_gradient / 5, spent.weight_gradient / 5]
    assert found == pytest.approx(predicted(pair))


def test_every_core_method_meets_every_rival() -> None:
    assert len(PAIRS) == len(CORE) * (len(RIVALS) + len(SECOND))


FORBIDDEN = [pair for pair, known in known_pairings().items() if known.verdict == "forbidden"]
REDUNDANT = [pair for pair, known in known_pairings().items() if known.verdict == "redundant"]


@pytest.mark.parametrize("pair", FORBIDDEN, ids=" and ".join)
def test_a_forbidden_pair_is_refused_with_its_reason(pair: tuple[str, str]) -> None:
    with pytest.raises(MethodError) as caught:
        RegularizedModel(tiny_model("bert"), [settings(key) for key in pair])
    assert str(caught.value) == f"{pair[0]} and {pair[1]} do not go together: {pairing(*pair).why}."


@pytest.mark.parametrize("pair", REDUNDANT, ids=" and ".join)
def test_a_redundant_pair_says_so(pair: tuple[str, str]) -> None:
    wrapper = RegularizedModel(tiny_model("bert"), [settings(key) for key in pair])
    assert f"{pair[0]} and {pair[1]} do the same twice: {pairing(*pair).why}." in wrapper.notices


def test_a_refused_stack_leaves_the_model_unwrapped() -> None:
    model = tiny_model("bert")
    with pytest.raises(MethodError):
        RegularizedModel(model, [settings("pgd"), settings("freelb")])
    RegularizedModel(model)


def test_the_table_names_methods_only_and_each_pair_once() -> None:
    pairs = list(known_pairings())
    assert {key for pair in pairs for key in pair} <= set(METHODS)
    assert len({frozenset(pair) for pair in pairs}) == len(pairs)


def test_a_pair_is_known_in_either_order_and_an_unknown_one_is_allowed() -> None:
    assert pairing("pgd", "freelb") == pairing("freelb", "pgd")
    assert pairing("scl", "hype").verdict == "allowed"


def test_every_pair_that_needs_a_rule_or_is_refused_has_a_reason() -> None:
    assert [pair for pair, known in known_pairings().items() if known.verdict != "allowed" and not known.why] == []


def test_the_page_shows_every_method_and_every_reason() -> None:
    table, rules = compatibility_table(), compatibility_rules()
    assert [line.split("`")[1] for line in table.splitlines()[2:]] == list(METHODS)
    assert all(known.why in rules for known in known_pairings().values())
