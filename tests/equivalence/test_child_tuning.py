"""Child-Tuning beside a hand-written loop: masks of gradients, of updates, by Fisher score and at random."""

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from equivalence.straight_line import CLOSE, SEED, batch, cross_entropy, forward, tiny_bert, trained
from steadytune import L2SP, RegularizedModel
from steadytune.functional import keyed_generator
from steadytune.methods import MethodError
from steadytune.methods.child_tuning import ChildTuning, top_share
from tiny import rows_of, tiny_batch, tiny_model

RATE, DECAY, STEPS = 0.01, 0.1, 4
OPTIMIZERS: dict[str, Any] = {"AdamW": torch.optim.AdamW, "SGD": torch.optim.SGD}
Masks = dict[str, Tensor]


def values(model: nn.Module) -> dict[str, Tensor]:
    return {name: parameter.detach().clone() for name, parameter in model.named_parameters()}


def in_block(name: str) -> bool:
    return ".layer." in name


def fresh_masks(model: nn.Module, share: float, step: int) -> Masks:
    """Mode F: one stream per optimizer step and parameter, the same in every process."""

    def draw(name: str, shape: torch.Size) -> Tensor:
        generator = keyed_generator("cpu", SEED, "child_tuning", "update", step, name)
        return torch.rand(shape, generator=generator, dtype=torch.float64)

    return {name: draw(name, p.shape) < share for name, p in model.named_parameters() if in_block(name)}


def fisher_scores(rows: int) -> dict[str, Tensor]:
    """Sums of squared gradients of single rows, without dropout."""
    model, data = tiny_bert(0.0), batch(7)
    scores = {name: torch.zeros_like(p) for name, p in model.named_parameters() if in_block(name)}
    for row in range(rows):
        one = {name: value[row : row + 1] for name, value in data.items()}
        model.zero_grad()
        cross_entropy(forward(model, one).logits, one["labels"]).backward()
        for name, score in scores.items():
            score += model.get_parameter(name).grad ** 2
    return scores


def largest(scores: dict[str, Tensor], share: float) -> Masks:
    """The largest of all entries together, by sorting them."""
    entries = [(float(v), name, i) for name, score in scores.items() for i, v in enumerate(score.flatten())]
    entries.sort(key=lambda entry: -entry[0])
    masks = {name: torch.zeros(score.numel(), dtype=torch.bool) for name, score in scores.items()}
    for _, name, place in entries[: round(share * len(entries))]:
        masks[name][place] = True
    return {name: mask.view_as(scores[name]) for name, mask in masks.items()}


def masks_of(wrapper: RegularizedModel) -> Masks:
    buffers = wrapper.method_modules["child_tuning"].named_buffers()
    return {name.replace("/", "."): value.clone() for name, value in buffers if value.dtype == torch.bool}


def by_hand(child: ChildTuning, kind: str, sizes: list[int], fixed: Masks | None) -> dict[str, Tensor]:
    model = tiny_bert(0.1)
    groups = [
        {"params": [p], "weight_decay": DECAY if p.ndim > 1 and (fixed is None or not in_block(name)) else 0.0}
        for name, p in model.named_parameters()
    ]
    optimizer = OPTIMIZERS[kind](groups, lr=RATE)
    for step in range(STEPS):
        torch.manual_seed(step)
        for part in rows_of(batch(step), sizes):
            loss = cross_entropy(forward(model, part).logits, part["labels"])
            (loss * len(part["labels"]) / 6).backward()
        masks = fresh_masks(model, child.share, step) if fixed is None else fixed
        before = values(model)
        for name, mask in masks.items():
            gradient = model.get_parameter(name).grad
            gradient.copy_(gradient * mask / (child.share if fixed is None else 1.0))
        optimizer.step()
        optimizer.zero_grad()
        with torch.no_grad():
            for name, mask in masks.items() if child.mask == "update" else ():
                model.get_parameter(name)[~mask] = before[name][~mask]
    return values(model)


def run(wrapper: RegularizedModel, optimizer: torch.optim.Optimizer, sizes: list[int], steps: int = STEPS) -> None:
    wrapper.attach(optimizer)
    for step in range(steps):
        torch.manual_seed(step)
        for out in wrapper.accumulate(rows_of(batch(step), sizes)):
            out.loss.backward()
        optimizer.step()
        optimizer.zero_grad()


def wrapped(child: ChildTuning, dropout: float = 0.1) -> RegularizedModel:
    wrapper = RegularizedModel(tiny_bert(dropout), [child], seed=SEED)
    if wrapper.wants_survey:
        wrapper.survey([batch(7)])
    return wrapper


@pytest.mark.parametrize("kind", OPTIMIZERS)
@pytest.mark.parametrize("sizes", [[6], [4, 2]], ids=str)
@pytest.mark.parametrize("mask", ["grad", "update"])
@pytest.mark.parametrize("mode", ["F", "D", "random"])
def test_weights_after_some_steps_are_those_of_a_hand_written_loop(
    mode: Any, mask: Any, sizes: list[int], kind: str
) -> None:
    child = ChildTuning(mode=mode, share=0.4, mask=mask)
    wrapper = wrapped(child)
    fixed = None if mode == "F" else largest(fisher_scores(6), 0.4) if mode == "D" else masks_of(wrapper)
    run(wrapper, OPTIMIZERS[kind](wrapper.parameter_groups(RATE, DECAY), lr=RATE), sizes)
    torch.testing.assert_close(values(wrapper.model), by_hand(child, kind, sizes, fixed), **CLOSE)


# -- the fixed masks --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("limit", "rows"), [(None, 6), (4, 4), (1000, 6)])
@pytest.mark.parametrize("share", [0.1, 0.3])
def test_mode_d_keeps_the_largest_fisher_scores_of_all_blocks_together(
    share: float, limit: int | None, rows: int
) -> None:
    wrapper = wrapped(ChildTuning(mode="D", share=share, fisher_rows=limit))
    expected, found = largest(fisher_scores(rows), share), masks_of(wrapper)
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in expected)


def test_the_scores_are_those_of_the_weights_without_dropout_and_mode_and_gradients_stay() -> None:
    wrapper = RegularizedModel(tiny_bert(0.5), [ChildTuning(mode="D")], seed=SEED)
    before = values(wrapper.model)
    wrapper.survey([batch(7)])
    expected = largest(fisher_scores(6), 0.3)
    assert all(torch.equal(mask, expected[name]) for name, mask in masks_of(wrapper).items())
    assert wrapper.model.training and all(p.grad is None for p in wrapper.model.parameters())
    assert all(torch.equal(value, before[name]) for name, value in values(wrapper.model).items())


def test_rows_beyond_the_limit_are_not_read() -> None:
    wrapper = RegularizedModel(tiny_bert(0.1), [ChildTuning(mode="D", fisher_rows=3)], seed=SEED)

    def batches() -> Any:
        yield batch(7)
        raise AssertionError("a second batch was read")

    wrapper.survey(batches())


def test_equal_scores_at_the_border_are_kept_in_order_up_to_the_share() -> None:
    scores = torch.tensor([1, 5, 2, 2, 7, 2, 0, 2]).double()
    assert top_share(scores, 0.5).tolist() == [False, True, True, True, True, False, False, False]
    assert top_share(scores, 1.0).all()
    assert top_share(torch.zeros(10).double(), 0.3).tolist() == [True] * 3 + [False] * 7
    assert top_share(scores, 0.001).tolist() == [False] * 4 + [True] + [False] * 3  # one at least


def test_a_random_mask_has_the_share_of_mode_d_and_belongs_to_the_seed() -> None:
    child = ChildTuning(mode="random", share=0.3)
    one, same = (masks_of(wrapped(child)) for _ in range(2))
    other = masks_of(RegularizedModel(tiny_bert(0.1), [child], seed=SEED + 1))
    assert all(torch.equal(one[name], same[name]) for name in one)
    assert any(not torch.equal(one[name], other[name]) for name in one)
    by_fisher = masks_of(wrapped(ChildTuning(mode="D", share=0.3)))
    assert sum(int(mask.sum()) for mask in one.values()) == sum(int(mask.sum()) for mask in by_fisher.values())


def test_the_masks_of_a_resumed_run_are_those_it_began_with(tmp_path: Path) -> None:
    child = ChildTuning(mode="D", mask="update")
    wrapper = wrapped(child)
    run(wrapper, torch.optim.SGD(wrapper.parameter_groups(RATE), lr=RATE), [6])
    wrapper.save_state(tmp_path)
    again = RegularizedModel(copy.deepcopy(wrapper.model), [child], seed=SEED)
    again.load_state(tmp_path)
    assert not again.wants_survey
    assert all(torch.equal(mask, masks_of(wrapper)[name]) for name, mask in masks_of(again).items())


def test_mode_d_must_see_the_training_rows_and_the_others_do_not_ask() -> None:
    wrapper = RegularizedModel(tiny_bert(0.1), [ChildTuning(mode="D")], seed=SEED)
    wrapper.attach(torch.optim.SGD(wrapper.parameter_groups(RATE), lr=RATE))
    with pytest.raises(MethodError, match=r"^child_tuning looks at the training rows first"):
        wrapper(**batch())
    for mode in ("F", "random"):
        assert not RegularizedModel(tiny_bert(0.1), [ChildTuning(mode=mode)], seed=SEED).wants_survey


@pytest.mark.parametrize("rows", [[], [{**batch(), "labels": torch.full((6,), -100)}]], ids=["no row", "no label"])
def test_rows_without_scores_are_refused(rows: list[dict[str, Tensor]]) -> None:
    wrapper = RegularizedModel(tiny_bert(0.1), [ChildTuning(mode="D")], seed=SEED)
    with pytest.raises(MethodError, match=r"^child_tuning finds no Fisher scores"):
        wrapper.survey(rows)


# -- what is masked ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", ["bert", "albert", "modernbert", "xlnet", "deberta-v2-conv"])
def test_blocks_are_masked_and_embeddings_pooler_and_head_are_not(family: str) -> None:
    wrapper = RegularizedModel(tiny_model(family), [ChildTuning(mode="random", share=0.1)])
    optimizer = torch.optim.SGD(wrapper.parameter_groups(RATE), lr=RATE)
    wrapper.attach(optimizer)
    wrapper(**tiny_batch(family)).loss.backward()
    before = {n: p.grad.clone() for n, p in wrapper.model.named_parameters() if p.grad is not None}
    optimizer.step()
    masks = masks_of(wrapper)
    for name, parameter in wrapper.model.named_parameters():
        if name in before:
            assert torch.equal(parameter.grad, before[name] * masks.get(name, torch.ones(()))), name
    assert masks and all("layer" in name for name in masks)


def test_under_adamw_a_masked_gradient_does_not_hold_a_weight_and_a_masked_update_does() -> None:
    held = {}
    for mask in ("grad", "update"):
        wrapper = wrapped(ChildTuning(mask=mask))
        optimizer = torch.optim.AdamW(wrapper.parameter_groups(RATE, DECAY))
        run(wrapper, optimizer, [6], steps=3)
        before = values(wrapper.model)
        wrapper(**batch(9)).loss.backward()
        optimizer.step()
        masks = fresh_masks(wrapper.model, 0.3, 3)
        same = [(values(wrapper.model)[n] == before[n])[~m] for n, m in masks.items()]
        held[mask] = float(torch.cat(same).double().mean())
    assert held["update"] == 1
    assert held["grad"] < 0.1


@pytest.mark.parametrize("first", [True, False])
def test_a_masked_update_holds_a_weight_against_the_pull_of_l2sp_in_either_order(first: bool) -> None:
    methods = [ChildTuning(mask="update"), L2SP(weight=0.5)]
    wrapper = RegularizedModel(tiny_bert(0.1), methods if first else methods[::-1], seed=SEED)
    run(wrapper, torch.optim.SGD(wrapper.parameter_groups(RATE), lr=RATE), [6], steps=1)
    start = values(tiny_bert(0.1))
    with torch.no_grad():
        for parameter in wrapper.model.parameters():
            parameter.add_(0.1)  # away from where it is pulled to
    moved = values(wrapper.model)
    wrapper(**batch(9)).loss.backward()
    optimizer = torch.optim.SGD(wrapper.parameter_groups(RATE), lr=RATE)
    wrapper.detach()
    wrapper.attach(optimizer)
    optimizer.step()
    masks = fresh_masks(wrapper.model, 0.3, 1)
    now = values(wrapper.model)
    assert all(torch.equal(now[name][~mask], moved[name][~mask]) for name, mask in masks.items())
    assert all(not torch.equal(now[name], moved[name]) for name in masks if start[name].ndim > 1)


def test_an_optimizer_without_any_masked_parameter_is_said() -> None:
    wrapper = wrapped(ChildTuning())
    run(wrapper, torch.optim.SGD(wrapper.model.classifier.parameters(), lr=RATE), [6], steps=1)
    assert wrapper.notices == [
        "child_tuning masks nothing: the optimizer trains none of the parameters inside the layers."
    ]


def test_a_fixed_mask_takes_weight_decay_off_the_blocks_and_a_fresh_one_does_not() -> None:
    decayed = {}
    for mode in ("F", "D", "random"):
        wrapper = RegularizedModel(tiny_bert(0.1), [ChildTuning(mode=mode)])
        names = {id(parameter): name for name, parameter in wrapper.model.named_parameters()}
        groups = wrapper.parameter_groups(RATE, DECAY)
        decayed[mode] = {names[id(p)] for group in groups if group["weight_decay"] for p in group["params"]}
    assert any(in_block(name) for name in decayed["F"])
    assert decayed["D"] == decayed["random"] == {name for name in decayed["F"] if not in_block(name)}


def test_share_1_is_plain_training_bit_for_bit() -> None:
    plain = RegularizedModel(tiny_bert(0.1), [])
    nothing = RegularizedModel(tiny_bert(0.1), [ChildTuning(share=1)])
    expected = trained(plain, lambda data: plain(**data).loss)
    found = trained(nothing, lambda data: nothing(**data).loss)
    assert all(torch.equal(found[name], expected[name]) for name in expected)


@pytest.mark.parametrize("mode", ["F", "D", "random"])
def test_it_reports_the_share_that_is_kept(mode: Any) -> None:
    wrapper = wrapped(ChildTuning(mode=mode, share=0.4))
    run(wrapper, torch.optim.SGD(wrapper.parameter_groups(RATE), lr=RATE), [6], steps=1)
    telemetry = wrapper.drain_telemetry()
    masks = fresh_masks(wrapper.model, 0.4, 0) if mode == "F" else masks_of(wrapper)
    share = torch.cat([mask.flatten() for mask in masks.values()]).double().mean()
    assert telemetry["child_tuning/kept_share"] == pytest.approx(float(share))
    if mode == "D":
        scores = fisher_scores(6)
        mass = sum(float(score[masks[name]].sum()) for name, score in scores.items())
        whole = sum(float(score.sum()) for score in scores.values())
        assert telemetry["child_tuning/kept_fisher"] == pytest.approx(mass / whole)
    else:
        assert "child_tuning/kept_fisher" not in telemetry


def test_a_step_costs_no_pass_and_the_survey_one_per_batch() -> None:
    wrapper = wrapped(ChildTuning(mode="D"))
    assert wrapper.spent.forward == 1
    wrapper.attach(torch.optim.SGD(wrapper.parameter_groups(RATE), lr=RATE))
    passes = wrapper(**batch()).passes
    assert (passes.forward, passes.activation_gradient, passes.weight_gradient) == (1, 1, 1)


def test_frozen_blocks_are_refused() -> None:
    model = tiny_bert(0.1)
    model.bert.encoder.requires_grad_(False)
    with pytest.raises(MethodError, match=r"^child_tuning cannot act here"):
        RegularizedModel(model, [ChildTuning()])
