"""CAT inside the step: what is perturbed, what is contrasted, what it costs, where it refuses; cat.md, K2 to K15."""

import copy
import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.functional import cross_entropy, mse_loss
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

from steadytune import CAT, RegularizedModel
from steadytune.encoders import SiteUnavailable
from steadytune.functional import Norm
from steadytune.methods import MethodError
from steadytune.objective import Coefficients
from steadytune.tasks import Classification
from tiny import CLS, FAMILIES, PAD, gradients, inputs_of, tiny_batch, tiny_model
from tolerances import LINEAR, REPLAYED, SAME

EXACT = SAME[torch.float64]
CLOSE: dict[str, float] = {"rtol": EXACT, "atol": EXACT}
TO_THE_DIGIT: dict[str, float] = {"rtol": REPLAYED, "atol": REPLAYED}
NORMS: list[Norm] = ["l2", "linf"]
every_norm = pytest.mark.parametrize("norm", NORMS)
every_family = pytest.mark.parametrize("family", FAMILIES)


def calm(family: str = "bert", **options: Any) -> Any:
    """A model without dropout, so that the two passes differ by the perturbation alone."""
    return tiny_model(family, **{"dropout": 0.0, "dtype": torch.float64, **options})


def table_of(model: Any) -> Any:
    """The word-embedding matrix."""
    return model.get_input_embeddings().weight


def with_repeats(family: str = "bert") -> dict[str, Tensor]:
    """A batch in which some ids occur many times, inside one example and across examples."""
    batch = tiny_batch(family)
    real = batch["attention_mask"].bool()
    few = batch["input_ids"] % 5 + 5
    first_tokens = torch.zeros_like(real)
    first_tokens[:, 0] = family != "xlnet"
    batch["input_ids"] = torch.where(real & ~first_tokens, few, batch["input_ids"])
    return batch


# -- the reference: the matrix itself, V and V + r --------------------------------------------------------------------


@dataclass
class Explicit:
    """Both passes of the equations, with the whole matrix, and no knowledge of hooks.

    Attributes:
        losses: L_1 and L_2.
        logits: of both passes.
        vectors: final states of the token that the head reads, of both passes.
        gradient: g, of L_1 with respect to the matrix.
        step: r.
    """

    losses: list[Tensor]
    logits: list[Tensor]
    vectors: list[Tensor]
    gradient: Tensor
    step: Tensor


def explicit(model: Any, batch: dict[str, Tensor], epsilon: float, norm: Norm, still: Iterable[int] = ()) -> Explicit:
    """Both passes and the step between them; rows of `still` are left where they are."""
    table, labels, place = table_of(model), batch["labels"], -1 if model.config.model_type == "xlnet" else 0
    name = next(name for name, parameter in model.named_parameters() if parameter is table)
    kept: list[Tensor] = []
    hook = model.base_model.register_forward_hook(lambda module, args, output: kept.append(output[0]))

    def run(matrix: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        logits = functional_call(model, {name: matrix}, kwargs=inputs_of(batch)).logits
        numbers = logits.shape[1] == 1
        loss = mse_loss(logits[:, 0], labels) if numbers else cross_entropy(logits, labels)
        return loss, logits, kept.pop()[:, place]

    clean = run(table)
    (gradient,) = torch.autograd.grad(clean[0], table, retain_graph=True)
    moving = gradient.clone()
    moving[list(still)] = 0
    step = epsilon * (moving / moving.norm() if norm == "l2" else moving.sign())
    perturbed = run(table + step)
    hook.remove()
    losses, logits, vectors = ([one, other] for one, other in zip(clean, perturbed, strict=True))
    return Explicit(losses, logits, vectors, gradient, step)


def contrast(one: Tensor, other: Tensor, tau: float) -> Tensor:
    """Minus the logarithm of the partner's share, anchor by anchor."""
    views, total = [*one, *other], one.new_zeros(())
    for i, anchor in enumerate(views):
        scores = {k: anchor @ view / (anchor.norm() * view.norm() * tau) for k, view in enumerate(views) if k != i}
        mass = torch.stack([score.exp() for score in scores.values()]).sum()
        total = total - (scores[(i + len(one)) % len(views)].exp() / mass).log()
    return total / len(views)


def both_passes(model: Any, cat: CAT, batch: dict[str, Tensor], **options: Any) -> tuple[Any, list[Tensor]]:
    """The step's output, and the logits of its passes in the order in which they ran."""
    kept: list[Tensor] = []
    handle = model.register_forward_hook(lambda module, args, output: kept.append(output.logits))
    wrapper = RegularizedModel(model, [cat], **options)
    out = wrapper(**batch)
    wrapper.close()
    handle.remove()
    return out, kept


def moved(model: Any, cat: CAT, batch: dict[str, Tensor]) -> Tensor:
    """How far each embedded token was moved, seen where BERT has added positions and segments to it."""
    kept: list[Tensor] = []
    norm = model.bert.embeddings.LayerNorm
    handle = norm.register_forward_pre_hook(lambda module, args: kept.append(args[0].detach()))
    both_passes(model, cat, batch)
    handle.remove()
    return kept[1] - kept[0]


# -- the perturbation -------------------------------------------------------------------------------------------------


@every_norm
@every_family
def test_perturbed_logits_are_those_of_the_matrix_plus_its_step(family: str, norm: Norm) -> None:
    batch, epsilon = with_repeats(family), {"l2": 1.0, "linf": 0.1}[norm]
    expected = explicit(calm(family), batch, epsilon, norm)
    _, found = both_passes(calm(family), CAT(epsilon=epsilon, norm=norm), batch)
    torch.testing.assert_close(found, expected.logits, **TO_THE_DIGIT)
    assert not torch.allclose(*found)


@every_norm
@pytest.mark.parametrize("family", ["bert", "electra", "albert", "modernbert", "xlnet"])
def test_value_and_gradients_are_those_of_the_equations_with_the_step_held_fixed(family: str, norm: Norm) -> None:
    batch, weight, tau, epsilon = with_repeats(family), 0.4, 0.2, {"l2": 1.0, "linf": 0.1}[norm]
    ours, theirs = calm(family), calm(family)
    wrapper = RegularizedModel(ours, [CAT(weight=weight, temperature=tau, epsilon=epsilon, norm=norm)])
    head: Any = copy.deepcopy(wrapper.method_modules["cat"])
    out = wrapper(**batch)
    out.loss.backward()

    whole = explicit(theirs, batch, epsilon, norm)
    z = [(head[2].weight @ (head[0].weight @ vector.T).clamp(min=0)).T for vector in whole.vectors]
    total = (1 - weight) / 2 * (whole.losses[0] + whole.losses[1]) + weight * contrast(*z, tau)
    total.backward()
    torch.testing.assert_close(out.loss, total, **CLOSE)
    torch.testing.assert_close(gradients(ours), gradients(theirs), **CLOSE)
    torch.testing.assert_close(gradients(wrapper.method_modules["cat"]), gradients(head), **CLOSE)


def test_the_contrast_trains_the_clean_pass_too() -> None:
    model, batch = calm(), with_repeats()
    wrapper = RegularizedModel(model, [CAT(weight=1.0, epsilon=1.0)])
    head: Any = copy.deepcopy(wrapper.method_modules["cat"])
    wrapper(**batch).loss.backward()
    other = calm()
    one, two = explicit(other, batch, 1.0, "l2").vectors
    contrast(head(one.detach()), head(two), CAT().temperature).backward()  # cheaper, and another method
    name = "bert.encoder.layer.0.output.dense.weight"
    difference = gradients(model)[name] - gradients(other)[name]
    assert float(difference.norm()) > 0.1 * float(gradients(model)[name].norm())


@pytest.mark.parametrize("epsilon", [1e-5, 1e-4])
@every_norm
def test_the_loss_rises_as_the_first_order_predicts(norm: Norm, epsilon: float) -> None:
    batch, model = with_repeats(), calm()
    gradient = explicit(model, batch, epsilon, norm).gradient
    _, logits = both_passes(model, CAT(epsilon=epsilon, norm=norm), batch)
    before, after = (float(cross_entropy(scores.detach(), batch["labels"])) for scores in logits)
    slope = float(gradient.norm() if norm == "l2" else gradient.abs().sum())
    assert (after - before) / (epsilon * slope) == pytest.approx(1, rel=LINEAR)


def test_every_occurrence_of_an_id_moves_alike() -> None:
    batch = with_repeats()
    movement, ids = moved(calm(), CAT(epsilon=1.0), batch), batch["input_ids"]
    for token in ids.unique().tolist():
        rows = movement[ids == token]
        torch.testing.assert_close(rows, rows[:1].expand_as(rows), **CLOSE)
    assert len(ids.unique()) < ids.numel() / 2


def distinct(movement: Tensor, ids: Tensor) -> Tensor:
    """One row for each id of a batch."""
    return torch.stack([movement[ids == token][0] for token in ids.unique().tolist()])


def test_l2_step_has_the_length_epsilon_over_the_ids_of_the_batch() -> None:
    batch = with_repeats()
    rows = distinct(moved(calm(), CAT(epsilon=0.7), batch), batch["input_ids"])
    assert float(rows.norm()) == pytest.approx(0.7, rel=EXACT)


def test_every_entry_of_the_sign_step_has_the_size_epsilon_except_in_the_row_of_padding() -> None:
    batch = with_repeats()
    rows = distinct(moved(calm(), CAT(epsilon=0.01, norm="linf"), batch), batch["input_ids"])
    padding = batch["input_ids"].unique() == PAD
    assert torch.equal(rows[padding], torch.zeros(1, 16).double())
    torch.testing.assert_close(rows[~padding].abs(), torch.full_like(rows[~padding], 0.01), **CLOSE)


@every_norm
def test_the_row_of_padding_stays_even_where_the_model_reads_it(norm: Norm) -> None:
    model, batch = calm(), tiny_batch("bert", padded=False)
    model.bert.embeddings.word_embeddings.padding_idx = None  # which hides its gradient
    batch["input_ids"][:, 3] = PAD
    movement = moved(model, CAT(epsilon=0.5, norm=norm), batch)
    assert torch.equal(movement[:, 3], torch.zeros(4, 16).double())
    assert float(movement[:, 2].norm()) > 0


class LargeLoss(Classification):
    """A label loss as a loss scaler would make it."""

    def loss(self, logits: Tensor, labels: Tensor) -> Tensor:
        return 2.0**16 * super().loss(logits, labels)


@every_norm
def test_the_perturbation_does_not_depend_on_the_scale_of_the_loss(norm: Norm) -> None:
    tasks = Classification(("a", "b", "c")), LargeLoss(("a", "b", "c"))
    found = [both_passes(calm(), CAT(epsilon=0.5, norm=norm), with_repeats(), task=task)[1] for task in tasks]
    torch.testing.assert_close(found[1], found[0], **CLOSE)


@pytest.mark.parametrize("epsilon", [0.0, 0.5])
def test_the_perturbed_pass_draws_its_own_dropout(epsilon: float) -> None:
    _, (clean, perturbed) = both_passes(tiny_model("bert", dropout=0.1), CAT(epsilon=epsilon), tiny_batch("bert"))
    assert not torch.allclose(clean, perturbed)


def test_without_a_radius_and_without_dropout_both_passes_agree() -> None:
    _, (clean, perturbed) = both_passes(calm(), CAT(epsilon=0.0), tiny_batch("bert"))
    assert torch.equal(clean, perturbed)


# -- special tokens ---------------------------------------------------------------------------------------------------


def framed() -> tuple[dict[str, Tensor], int]:
    """A batch with a last token of its own id before the padding, and that id."""
    batch, end = with_repeats(), 3
    batch["input_ids"].scatter_(1, batch["attention_mask"].sum(dim=1, keepdim=True) - 1, end)
    batch["input_ids"][0, 4] = end  # between two texts
    return batch, end


@every_norm
def test_special_tokens_move_with_the_others_by_default(norm: Norm) -> None:
    batch, end = framed()
    movement = moved(calm(), CAT(epsilon=0.5, norm=norm), batch)
    assert all(float(movement[batch["input_ids"] == token].norm()) > 0 for token in (CLS, end))


@every_norm
def test_special_tokens_stay_on_request_and_the_others_have_the_whole_step(norm: Norm) -> None:
    batch, end = framed()
    expected = explicit(calm(), batch, 0.5, norm, still=[CLS, end])
    _, found = both_passes(calm(), CAT(epsilon=0.5, norm=norm, perturb_special=False), batch)
    torch.testing.assert_close(found, expected.logits, **TO_THE_DIGIT)


def test_the_special_tokens_of_xlnet_are_its_last_two() -> None:
    batch = with_repeats("xlnet")
    batch["input_ids"][:, -2:] = torch.tensor([4, 3])
    expected = explicit(calm("xlnet"), batch, 0.5, "l2", still=[4, 3])
    _, found = both_passes(calm("xlnet"), CAT(epsilon=0.5, perturb_special=False), batch)
    torch.testing.assert_close(found, expected.logits, **TO_THE_DIGIT)


def test_without_a_mask_the_first_and_the_last_position_are_special() -> None:
    batch = tiny_batch("bert", padded=False)
    ends = batch["input_ids"][:, -1].tolist()
    expected = explicit(calm(), batch, 0.5, "l2", still=[CLS, *ends])
    del batch["attention_mask"]
    _, found = both_passes(calm(), CAT(epsilon=0.5, perturb_special=False), batch)
    torch.testing.assert_close(found, expected.logits, **TO_THE_DIGIT)


def test_a_text_of_one_token_is_special_altogether() -> None:
    batch = tiny_batch("bert", tokens=1, padded=False)
    assert torch.equal(moved(calm(), CAT(perturb_special=False), batch), torch.zeros(4, 1, 16).double())


# -- the loss ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("weight", "expected"), [(0, 0.80), (0.1, 0.84), (0.2, 0.88), (0.3, 0.92), (0.4, 0.96), (0.5, 1.00), (1, 1.20)]
)
def test_mix_of_two_label_losses_and_the_contrast(weight: float, expected: float) -> None:
    factors = Coefficients.of([CAT(weight=weight)])
    mixed = factors.task * (0.7 + 0.9) / 2 + factors.terms["cat"] * 1.2
    assert mixed == pytest.approx(expected, rel=EXACT)


@pytest.mark.parametrize("weight", [0.0, 0.3, 1.0])
def test_loss_is_the_mean_label_loss_of_both_passes_mixed_with_the_contrast(weight: float) -> None:
    batch = with_repeats()
    out, logits = both_passes(calm(), CAT(weight=weight, epsilon=1.0), batch)
    label_loss = sum(float(cross_entropy(scores.detach(), batch["labels"])) for scores in logits) / 2
    assert float(out.task_loss) == pytest.approx(label_loss, rel=EXACT)
    term = float(out.terms["cat"]) if weight else 0.0
    assert float(out.loss.detach()) == pytest.approx((1 - weight) * label_loss + weight * term, rel=EXACT)


@every_norm
def test_without_contrast_radius_and_dropout_it_is_plain_fine_tuning(norm: Norm) -> None:
    plain, regularized = calm(), calm()
    expected, found = (
        RegularizedModel(model, methods)(**tiny_batch("bert")).loss
        for model, methods in ((plain, []), (regularized, [CAT(weight=0.0, epsilon=0.0, norm=norm)]))
    )
    expected.backward()
    found.backward()
    torch.testing.assert_close(found, expected, **TO_THE_DIGIT)
    torch.testing.assert_close(gradients(regularized), gradients(plain), **TO_THE_DIGIT)


def test_it_contrasts_the_vector_that_enters_the_label_map_on_request() -> None:
    model, batch = calm(), with_repeats()
    kept: list[Tensor] = []
    model.classifier.register_forward_pre_hook(lambda module, args: kept.append(args[0].detach()))
    wrapper = RegularizedModel(model, [CAT(epsilon=1.0, pooled_source="label_input")])
    found = wrapper(**batch).terms["cat"]
    head: Any = wrapper.method_modules["cat"]
    expected = contrast(*(head(vector).detach() for vector in kept), CAT().temperature)
    torch.testing.assert_close(found, expected, **CLOSE)


def test_numbers_instead_of_classes_have_squared_errors_and_the_same_contrast() -> None:
    batch = tiny_batch("bert", regression=True)
    batch["labels"] = batch["labels"].double()
    model = calm(num_labels=1)
    wrapper = RegularizedModel(model, [CAT(weight=0.4, temperature=0.2, epsilon=1.0)])
    head: Any = copy.deepcopy(wrapper.method_modules["cat"])
    found = wrapper(**batch).loss
    whole = explicit(calm(num_labels=1), batch, 1.0, "l2")
    expected = 0.3 * (whole.losses[0] + whole.losses[1]) + 0.4 * contrast(*map(head, whole.vectors), 0.2)
    torch.testing.assert_close(found, expected, **CLOSE)


def test_rows_without_a_label_are_contrasted_but_carry_no_label_loss() -> None:
    batch = with_repeats()
    batch["labels"][1] = -100
    wrapper = RegularizedModel(calm(), [CAT(weight=0.4, temperature=0.2, epsilon=1.0)])
    head: Any = copy.deepcopy(wrapper.method_modules["cat"])
    found = wrapper(**batch)
    whole = explicit(calm(), batch, 1.0, "l2")  # torch leaves −100 out
    torch.testing.assert_close(found.task_loss, (whole.losses[0] + whole.losses[1]) / 2, **CLOSE)
    torch.testing.assert_close(found.terms["cat"], contrast(*map(head, whole.vectors), 0.2), **CLOSE)


def test_gathering_in_one_process_changes_nothing_and_is_said() -> None:
    terms, notices = [], []
    for gather in (False, True):
        wrapper = RegularizedModel(calm(), [CAT(epsilon=1.0, gather_across_devices=gather)])
        terms.append(wrapper(**with_repeats()).terms["cat"])
        notices.append(wrapper.notices)
    assert torch.equal(*terms)
    assert notices == [[], ["cat.gather_across_devices has no effect: there is one process."]]


# -- the projection head ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("source", ["cls", "label_input"])
def test_the_head_is_two_maps_without_bias_around_a_rectifier(source: Any) -> None:
    head: Any = RegularizedModel(calm(), [CAT(pooled_source=source, projection_dim=7)]).method_modules["cat"]
    assert {name: tuple(p.shape) for name, p in head.named_parameters()} == {
        "0.weight": (16, 16),
        "2.weight": (7, 16),
    }
    assert isinstance(head[1], nn.ReLU)


def test_the_head_reads_as_many_entries_as_the_label_map() -> None:
    model = calm()
    model.bert.pooler.dense = nn.Linear(16, 12).double()
    model.classifier = nn.Linear(12, 3).double()
    wrapper = RegularizedModel(model, [CAT(pooled_source="label_input", projection_dim=7)])
    assert [tuple(p.shape) for p in wrapper.method_modules["cat"].parameters()] == [(12, 12), (7, 12)]
    assert torch.isfinite(wrapper(**tiny_batch("bert")).loss)


def test_the_head_is_trained() -> None:
    wrapper = RegularizedModel(calm(), [CAT(epsilon=1.0)])
    optimizer = torch.optim.AdamW(wrapper.parameter_groups(lr=1e-2))
    wrapper.attach(optimizer)
    before = copy.deepcopy(wrapper.method_modules["cat"].state_dict())
    wrapper(**tiny_batch("bert")).loss.backward()
    optimizer.step()
    after = wrapper.method_modules["cat"].state_dict()
    assert [name for name in before if torch.equal(before[name], after[name])] == []


def test_without_a_contrast_there_is_no_head() -> None:
    wrapper = RegularizedModel(calm(), [CAT(weight=0.0)])
    assert len(wrapper.method_modules) == 0
    assert wrapper(**tiny_batch("bert")).terms == {}


# -- what is left alone -----------------------------------------------------------------------------------------------


def test_the_matrix_is_never_written_to() -> None:
    model = calm()
    table = table_of(model)
    before, version = table.detach().clone(), table._version
    RegularizedModel(model, [CAT(epsilon=1.0)])(**tiny_batch("bert")).loss.backward()
    assert torch.equal(table, before)
    assert table._version == version


def test_the_optimizer_state_of_the_matrix_waits_for_the_optimizer() -> None:
    model = calm()
    wrapper = RegularizedModel(model, [CAT(epsilon=1.0)])
    optimizer = torch.optim.AdamW(wrapper.parameter_groups(lr=1e-2))
    wrapper(**tiny_batch("bert")).loss.backward()
    optimizer.step()
    before = copy.deepcopy(optimizer.state[table_of(model)])
    wrapper(**tiny_batch("bert")).loss.backward()
    assert all(torch.equal(value, optimizer.state[table_of(model)][name]) for name, value in before.items())


def test_it_makes_no_difference_in_evaluation() -> None:
    wrapper, inputs = RegularizedModel(calm(), [CAT(epsilon=1.0)]), inputs_of(tiny_batch("bert"))
    wrapper(**tiny_batch("bert"))
    assert torch.equal(wrapper.eval()(**inputs).logits, calm().eval()(**inputs).logits)


# -- cost -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("epsilon", "traversals"), [(1.0, 3), (0.0, 2)])
@pytest.mark.parametrize("weight", [0.0, 0.3])
def test_a_step_is_two_forward_and_two_backward_passes_and_one_traversal_for_the_direction(
    weight: float, epsilon: float, traversals: int
) -> None:
    out, logits = both_passes(calm(), CAT(weight=weight, epsilon=epsilon), tiny_batch("bert"))
    passes = out.passes
    assert len(logits) == passes.forward == 2
    assert (passes.activation_gradient, passes.weight_gradient) == (traversals, 2)
    assert passes.units == {1.0: 7, 0.0: 6}[epsilon]


def operations(methods: list[Any]) -> int:
    wrapper = RegularizedModel(tiny_model("bert", dropout=0.0, attention="eager"), methods)
    with FlopCounterMode(display=False) as counted:
        wrapper(**tiny_batch("bert")).loss.backward()
    return int(counted.get_total_flops())


def test_counted_operations_are_little_more_than_seven_thirds_of_a_plain_step() -> None:
    head = 3 * 2 * 8 * (16 * 16 + 16 * 1)  # forward and both gradients of two maps for the two vectors of 4 examples
    ratio = (operations([CAT(projection_dim=1)]) - head) / operations([])
    attention, maps = 2 * 2 * 9 * 16, 2 * (4 + 2 + 2) * 16 * 16  # in the forward pass, by token of 9
    share = attention / (attention + maps)  # has no weights whose gradient the direction could do without
    assert ratio == pytest.approx((7 + share) / 3, rel=LINEAR)  # 2.34 for the twelve layers and 128 tokens of BERT-base


WAITING = {"_local_scalar_dense", "nonzero", "masked_select", "_unique2", "unique_dim", "unique_consecutive", "equal"}


class Waits(TorchDispatchMode):
    """Operations for which the program waits for a device to hand over a value."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket.__name__
        indices = args[1] if name in ("index", "index_put", "index_put_") else ()
        by_mask = any(index is not None and index.dtype == torch.bool for index in indices)
        if name in WAITING or by_mask:
            self.names.append(name)
        return func(*args, **(kwargs or {}))


@every_norm
@pytest.mark.parametrize("perturb_special", [True, False])
def test_a_step_after_the_first_waits_for_no_value_that_two_plain_passes_do_not_wait_for(
    norm: Norm, perturb_special: bool
) -> None:
    def names(methods: list[Any]) -> list[str]:
        wrapper, batch = RegularizedModel(tiny_model("bert", dropout=0.0), methods), tiny_batch("bert")
        wrapper(**batch)
        with Waits() as waits:
            wrapper(**batch).loss.backward()
        return waits.names

    assert sorted(names([CAT(norm=norm, perturb_special=perturb_special)])) == sorted(2 * names([]))


# -- batches ----------------------------------------------------------------------------------------------------------


@every_norm
def test_batches_of_any_size_run_one_after_the_other(norm: Norm) -> None:
    wrapper = RegularizedModel(tiny_model("bert"), [CAT(epsilon=0.5, norm=norm)])
    for rows in (1, 2, 5, 8, 3):
        out = wrapper(**tiny_batch("bert", rows=rows))
        out.loss.backward()
        assert torch.isfinite(out.loss) and len(out.logits) == rows
    assert all(torch.isfinite(gradient).all() for gradient in gradients(wrapper).values())


def test_one_example_has_no_contrast_and_a_sentence_says_so() -> None:
    wrapper = RegularizedModel(calm(), [CAT(epsilon=1.0)])
    out = wrapper(**tiny_batch("bert", rows=1))
    assert float(out.terms["cat"]) == 0.0
    out.loss.backward()
    assert all(float(p.grad.norm()) == 0 for p in wrapper.method_modules.parameters())
    assert wrapper.notices == ["cat has 1 row to contrast, which gives a contrast of 0; use a larger batch per device."]


def test_a_batch_without_any_label_is_not_perturbed() -> None:
    batch = tiny_batch("bert")
    batch["labels"] = torch.full((4,), -100)
    out, (clean, perturbed) = both_passes(calm(), CAT(epsilon=1.0), batch)
    assert torch.equal(clean, perturbed)
    assert float(out.telemetry["cat/zero_perturbation_fraction"]) == 1.0
    assert float(out.telemetry["cat/predicted_loss_rise"]) == 0.0


def test_a_gradient_of_zero_is_said_with_the_share_of_the_steps() -> None:
    batch = tiny_batch("bert")
    empty = {**batch, "labels": torch.full((4,), -100)}
    wrapper = RegularizedModel(calm(), [CAT(epsilon=100.0)])
    for data in (batch, batch, batch, empty):
        wrapper(**data)
    wrapper.drain_telemetry()
    assert wrapper.notices == ["cat: in 25% of the steps the gradient was 0 or not finite, so nothing was perturbed."]


@every_norm
@pytest.mark.parametrize("factor", [math.inf, math.nan])
@pytest.mark.parametrize("perturb_special", [True, False])
def test_a_gradient_that_is_not_finite_perturbs_nothing(factor: float, norm: Norm, perturb_special: bool) -> None:
    model, batch = calm(), with_repeats()

    def overflow(module: nn.Module, args: Any, output: Tensor) -> None:
        output.register_hook(lambda gradient: gradient * factor)

    model.bert.embeddings.LayerNorm.register_forward_hook(overflow)
    cat = CAT(epsilon=1.0, norm=norm, perturb_special=perturb_special)
    out, (clean, perturbed) = both_passes(model, cat, batch)
    assert torch.equal(clean, perturbed)
    assert float(out.telemetry["cat/zero_perturbation_fraction"]) == 1.0
    assert all(torch.isfinite(value) for value in out.telemetry.values())


# -- frozen parts -----------------------------------------------------------------------------------------------------


@every_family
def test_a_frozen_table_is_perturbed_as_a_trained_one(family: str) -> None:
    batch = with_repeats(family)
    _, expected = both_passes(calm(family), CAT(epsilon=1.0), batch)
    model = calm(family)
    table_of(model).requires_grad_(False)
    out, found = both_passes(model, CAT(epsilon=1.0), batch)
    torch.testing.assert_close(found, expected, **TO_THE_DIGIT)
    out.loss.backward()
    assert table_of(model).grad is None
    assert gradients(model)


def test_a_frozen_model_with_low_rank_adapters_is_perturbed_as_a_trained_one() -> None:
    peft = pytest.importorskip("peft")
    batch = with_repeats()
    _, expected = both_passes(calm(), CAT(epsilon=1.0), batch)
    adapters = peft.LoraConfig(r=2, target_modules=["query"], modules_to_save=["classifier"], task_type="SEQ_CLS")
    model = peft.get_peft_model(calm(), adapters)  # they start as no change at all
    out, found = both_passes(model.train(), CAT(epsilon=1.0), batch)
    torch.testing.assert_close(found, expected, **CLOSE)
    out.loss.backward()
    assert any("lora" in name for name in gradients(model))
    assert not any("word_embeddings" in name for name in gradients(model))


def test_a_frozen_encoder_is_refused() -> None:
    model = calm()
    model.bert.requires_grad_(False)
    with pytest.raises(MethodError) as caught:
        RegularizedModel(model, [CAT()])
    assert str(caught.value) == (
        "cat cannot act on a frozen encoder: perturbed and clean pass differ only below the head."
    )


# -- low precision ----------------------------------------------------------------------------------------------------


def test_a_perturbation_that_bfloat16_weights_round_away_is_refused() -> None:
    wrapper = RegularizedModel(calm(dtype=torch.bfloat16), [CAT(epsilon=1e-3)])
    with pytest.raises(MethodError) as caught:
        wrapper(**tiny_batch("bert"))
    text = str(caught.value)
    assert text.startswith("cat.epsilon is rounded away by the bfloat16 embeddings (correlation of intended and ")
    assert text.endswith("use float32 weights, with autocast if need be.")


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize(("norm", "epsilon"), [("l2", 2.0), ("linf", 0.1)])
def test_a_perturbation_that_half_precision_weights_keep_is_accepted(
    norm: Norm, epsilon: float, dtype: torch.dtype
) -> None:
    wrapper = RegularizedModel(calm(dtype=dtype), [CAT(norm=norm, epsilon=epsilon)])
    out = wrapper(**tiny_batch("bert"))
    out.loss.backward()
    assert out.loss.dtype == torch.float32
    assert torch.isfinite(out.loss)
    assert all(torch.isfinite(gradient).all() for gradient in gradients(wrapper).values())


@every_norm
def test_autocast_does_not_round_the_perturbation(norm: Norm) -> None:
    batch, epsilon = tiny_batch("bert"), 1e-3  # neighbors in bfloat16 are 1e-3 apart at 0.15, a usual entry here
    with torch.autocast("cpu", dtype=torch.bfloat16):
        movement = moved(calm(dtype=torch.float32), CAT(norm=norm, epsilon=epsilon), batch)
    rows = distinct(movement, batch["input_ids"])
    size = rows.norm() if norm == "l2" else rows[batch["input_ids"].unique() != PAD].abs()
    torch.testing.assert_close(size, torch.full_like(size, epsilon), rtol=0, atol=SAME[torch.float32])


@every_norm
def test_under_autocast_loss_and_gradients_are_finite_and_wide(norm: Norm) -> None:
    wrapper = RegularizedModel(tiny_model("bert"), [CAT(norm=norm, temperature=0.05)])
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out = wrapper(**tiny_batch("bert"))
    out.loss.backward()
    assert out.loss.dtype == out.terms["cat"].dtype == torch.float32
    assert torch.isfinite(out.loss)
    assert all(torch.isfinite(gradient).all() for gradient in gradients(wrapper).values())


# -- gradient checkpointing -------------------------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore:`gradient_checkpointing_enable`:FutureWarning")
@pytest.mark.parametrize("family", ["bert", "deberta-v2", "modernbert"])
def test_checkpointing_that_is_not_reentrant_gives_the_same_gradients(family: str) -> None:
    found = []
    for checkpointed in (False, True):
        model: Any = tiny_model(family, dtype=torch.float64)
        if checkpointed:
            model.gradient_checkpointing_enable({"use_reentrant": False})
        wrapper = RegularizedModel(model, [CAT(epsilon=1.0)])
        torch.manual_seed(0)
        wrapper(**tiny_batch(family)).loss.backward()
        found.append(gradients(wrapper))
    torch.testing.assert_close(found[1], found[0], **TO_THE_DIGIT)


@pytest.mark.filterwarnings("ignore:`gradient_checkpointing_enable`:FutureWarning")
def test_reentrant_checkpointing_is_refused() -> None:
    model = calm()
    model.gradient_checkpointing_enable({"use_reentrant": True})
    with pytest.raises(MethodError) as caught:
        RegularizedModel(model, [CAT()])(**tiny_batch("bert"))
    assert str(caught.value) == (
        "cat cannot act under re-entrant gradient checkpointing, which cuts its gradients; "
        "enable it with use_reentrant=False."
    )


# -- inputs it cannot read --------------------------------------------------------------------------------------------


def given_embeddings(model: Any) -> dict[str, Tensor]:
    batch = tiny_batch("bert")
    vectors = model.get_input_embeddings()(batch.pop("input_ids")).detach()
    return {**batch, "inputs_embeds": vectors}


def test_embeddings_in_place_of_ids_are_refused() -> None:
    model = calm()
    with pytest.raises(MethodError) as caught:
        RegularizedModel(model, [CAT()])(**given_embeddings(model))
    assert str(caught.value) == (
        "cat needs input_ids: it perturbs the word-embedding matrix, which inputs_embeds bypass."
    )


def test_embeddings_in_place_of_ids_are_accepted_without_a_radius() -> None:
    model = calm()
    assert torch.isfinite(RegularizedModel(model, [CAT(epsilon=0.0)])(**given_embeddings(model)).loss)


def test_padding_where_the_head_reads_is_refused() -> None:
    batch = tiny_batch("bert")
    left = {name: value.flip(1) if value.ndim == 2 else value for name, value in batch.items()}
    with pytest.raises(MethodError, match=r"^the token that the head reads \(position 0\) is padding in some rows"):
        RegularizedModel(calm(), [CAT()])(**left)


def test_the_vector_before_the_label_map_is_refused_where_there_is_no_such_map() -> None:
    model = calm()
    model.classifier = nn.Identity()
    with pytest.raises(SiteUnavailable, match=r"^cat needs the site 'pooled', which bert lacks: "):
        RegularizedModel(model, [CAT(pooled_source="label_input")], task=Classification(("a", "b", "c")))


# -- telemetry and notices --------------------------------------------------------------------------------------------


@every_norm
def test_telemetry_has_the_predicted_and_the_realized_rise_of_the_label_loss(norm: Norm) -> None:
    batch, epsilon = with_repeats(), 0.1
    whole = explicit(calm(), batch, epsilon, norm)
    out, _ = both_passes(calm(), CAT(epsilon=epsilon, norm=norm), batch)
    slope = float(whole.gradient.norm() if norm == "l2" else whole.gradient.abs().sum())
    rise = float((whole.losses[1] - whole.losses[0]).detach())
    assert float(out.telemetry["cat/predicted_loss_rise"]) == pytest.approx(epsilon * slope, rel=SAME[torch.float32])
    assert float(out.telemetry["cat/loss_rise"]) == pytest.approx(rise, rel=SAME[torch.float32])
    assert float(out.telemetry["cat/zero_perturbation_fraction"]) == 0.0


def test_the_predicted_rise_is_that_of_the_ids_that_move() -> None:
    batch, end = framed()
    gradient = explicit(calm(), batch, 0.1, "l2").gradient
    out, _ = both_passes(calm(), CAT(epsilon=0.1, perturb_special=False), batch)
    others = [token for token in range(len(gradient)) if token not in (CLS, end)]
    expected = 0.1 * float(gradient[others].norm())
    assert float(out.telemetry["cat/predicted_loss_rise"]) == pytest.approx(expected, rel=SAME[torch.float32])


@pytest.mark.parametrize("perturb_special", [True, False])
def test_telemetry_has_the_share_of_the_squared_gradient_in_the_special_tokens(perturb_special: bool) -> None:
    batch, end = framed()
    gradient = explicit(calm(), batch, 0.1, "l2").gradient
    out, _ = both_passes(calm(), CAT(perturb_special=perturb_special), batch)
    expected = float(gradient[[CLS, end]].square().sum() / gradient.square().sum())
    assert float(out.telemetry["cat/special_gradient_fraction"]) == pytest.approx(expected, rel=SAME[torch.float32])


def test_telemetry_has_the_mean_cosine_of_the_two_vectors_of_an_example() -> None:
    batch = with_repeats()
    one, other = (vector.detach() for vector in explicit(calm(), batch, 1.0, "l2").vectors)
    cosines = [float(a @ b / (a.norm() * b.norm())) for a, b in zip(one, other, strict=True)]
    out, _ = both_passes(calm(), CAT(epsilon=1.0), batch)
    assert float(out.telemetry["cat/cosine_of_views"]) == pytest.approx(math.fsum(cosines) / 4, rel=SAME[torch.float32])


def test_the_published_radius_is_said_to_be_nearly_nil() -> None:
    wrapper = RegularizedModel(tiny_model("bert"), [CAT(epsilon=1e-4)])
    wrapper(**tiny_batch("bert"))
    wrapper.drain_telemetry()
    (text,) = wrapper.notices
    assert text.startswith("cat: to first order the perturbation raises the label loss by only ")
    assert text.endswith("so the second pass is little more than a second dropout draw; use a larger cat.epsilon.")


@pytest.mark.parametrize(("rise", "sentences"), [(0.0, 1), (0.0099, 1), (0.01, 0), (1.0, 0)])
def test_a_rise_of_a_hundredth_is_enough(rise: float, sentences: int) -> None:
    assert len(CAT().judge({"predicted_loss_rise": rise, "zero_perturbation_fraction": 0.0})) == sentences


def test_the_control_without_a_radius_is_not_spoken_about() -> None:
    wrapper = RegularizedModel(tiny_model("bert"), [CAT(epsilon=0.0)])
    out = wrapper(**tiny_batch("bert"))
    wrapper.drain_telemetry()
    assert set(out.telemetry) == {"cat/loss_rise", "cat/cosine_of_views"}
    assert wrapper.notices == []
