"""Every method alone against one straight line of code that knows nothing of passes, sites and steps."""

import copy

import pytest
import torch

from dummies import LogitPenalty
from equivalence.straight_line import (
    CLOSE,
    SEED,
    assert_a_step_is_the_straight_line,
    batch,
    forward,
    tiny_bert,
    trained,
)
from steadytune import ASA, CAT, LNSR, SCL, HyPe, RegularizedModel
from steadytune.methods import Method, MethodError
from tolerances import PRINTED, SAME

ALONE: dict[str, Method] = {
    "scl": SCL(weight=0.9, temperature=0.3),
    "scl, other settings": SCL(weight=0.25, temperature=1.0),
    "hype normal": HyPe(noise_std=0.1),
    "hype uniform": HyPe(noise_std=0.1, distribution="uniform"),
    "hype relative": HyPe(noise_std=0.1, relative=True),
    "hype lower layer": HyPe(noise_std=0.1, layers=(0,)),
    "hype upper layer": HyPe(noise_std=0.1, layers=(2,)),
    "hype inside": HyPe(noise_std=0.1, place="inside"),
    "hype both": HyPe(noise_std=0.1, place="both"),
    "cat": CAT(weight=0.3, epsilon=0.5, projection_dim=8),
    "cat of every entry": CAT(weight=0.3, epsilon=0.05, norm="linf", projection_dim=8),
    "cat without contrast": CAT(weight=0, epsilon=0.5),
    "cat of every entry without contrast": CAT(weight=0, epsilon=0.05, norm="linf"),
    "cat, other settings": CAT(weight=0.7, epsilon=0.5, temperature=0.5, projection_dim=3, perturb_special=False),
    "cat without perturbation": CAT(weight=0.3, epsilon=0, projection_dim=8),
    "lnsr": LNSR(weight=0.7, noise_std=0.3),
    "lnsr of absolute noise": LNSR(weight=0.7, noise_std=0.3, relative=False),
    "lnsr of absolute distance": LNSR(weight=0.7, noise_std=0.3, normalize=False),
    "lnsr of absolute noise and distance": LNSR(weight=0.7, noise_std=0.3, relative=False, normalize=False),
    "lnsr of three draws": LNSR(weight=0.7, noise_std=0.3, draws=3),
    "lnsr from layer 1": LNSR(weight=0.7, noise_std=0.3, injection_layer=1),
    "lnsr from layer 1 of three draws": LNSR(weight=0.7, noise_std=0.3, injection_layer=1, draws=3, relative=False),
    "lnsr on one layer": LNSR(weight=0.7, noise_std=0.3, layers=(2,)),
    "lnsr on two layers": LNSR(weight=0.7, noise_std=0.3, layers=(3, 1), normalize=False),
    "lnsr of the sentence": LNSR(weight=0.7, noise_std=0.3, tokens="sentence"),
    "lnsr with fresh dropout": LNSR(weight=0.7, noise_std=0.3, dropout="fresh", draws=2),
    "asa": ASA(weight=0.7),
    "asa that pays nothing": ASA(weight=0.7, temperature=0),
    "asa that pays much": ASA(weight=0.2, temperature=2.0, gain=10.0),
    "asa that protects nothing": ASA(weight=0.7, protect="none"),
    "asa that protects the first column": ASA(weight=0.7, protect="cls_col"),
    "asa of any length": ASA(weight=0.7, parameterization="normalized"),
    "asa of low rank": ASA(weight=0.7, rank=3, keep_bias=0.5),
    "asa with one adversary": ASA(weight=0.7, shared=True),
    "asa on two layers": ASA(weight=0.7, layers=(2, 0)),
    "asa with shared dropout": ASA(weight=0.7, share_dropout=True),
    "asa at random": ASA(weight=0.7, adversary="random", mask_fraction=0.3),
    "asa at random, rows without any unit": ASA(weight=0.7, adversary="random", mask_fraction=0.9, protect="none"),
    "asa without masks": ASA(weight=0.7, adversary="none"),
}


@pytest.mark.parametrize("dropout", [0.0, 0.1])
def test_the_straight_encoder_is_bert_with_its_dropout(dropout: float) -> None:
    model, data = tiny_bert(dropout), batch()
    torch.manual_seed(1)
    expected, end = model(**data).logits, torch.get_rng_state()
    torch.manual_seed(1)
    torch.testing.assert_close(forward(model, data).logits, expected, **CLOSE)
    assert torch.equal(torch.get_rng_state(), end)


@pytest.mark.parametrize("dropout", [0.0, 0.1])
@pytest.mark.parametrize("name", ALONE)
def test_value_and_gradient_equal_the_straight_line(name: str, dropout: float) -> None:
    assert_a_step_is_the_straight_line([ALONE[name]], dropout)


@pytest.mark.parametrize("weight", [0.3, 0.5, 0.9, 1.0])
@pytest.mark.parametrize("method", [SCL, CAT])
def test_loss_is_the_convex_mix_of_its_reported_parts(method: type[Method], weight: float) -> None:
    out = RegularizedModel(tiny_bert(0.1), [method.from_settings({"weight": weight})], seed=SEED)(**batch())
    expected = (1 - weight) * float(out.task_loss) + weight * float(out.terms[method.key])
    assert float(out.loss.detach()) == pytest.approx(expected, rel=SAME[torch.float64])


@pytest.mark.parametrize("weight", [0.3, 2.0])
@pytest.mark.parametrize("method", [LNSR, ASA])
def test_loss_is_the_weighted_sum_of_its_reported_parts(method: type[Method], weight: float) -> None:
    out = RegularizedModel(tiny_bert(0.1), [method.from_settings({"weight": weight})], seed=SEED)(**batch())
    expected = float(out.task_loss) + weight * float(out.terms[method.key])
    assert float(out.loss.detach()) == pytest.approx(expected, rel=SAME[torch.float64])


# -- limits of the settings -------------------------------------------------------------------------------------------

NULL: dict[str, list[Method]] = {
    "scl": [SCL(weight=0)],
    "hype": [HyPe(noise_std=0)],
    "lnsr without weight": [LNSR(weight=0)],
    "lnsr without noise": [LNSR(noise_std=0)],
    "asa": [ASA(weight=0)],
    "all": [HyPe(noise_std=0, place="both"), SCL(weight=0), LNSR(weight=0), ASA(weight=0)],
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("dropout", [0.0, 0.1])
@pytest.mark.parametrize("name", NULL)
def test_null_setting_is_plain_fine_tuning_bit_for_bit(name: str, dropout: float, dtype: torch.dtype) -> None:
    plain, regularized = tiny_bert(dropout, dtype), tiny_bert(dropout, dtype)
    expected = trained(plain, lambda data: plain(**data).loss)
    wrapper = RegularizedModel(regularized, NULL[name], seed=SEED)
    found = trained(regularized, lambda data: wrapper(**data).loss)
    assert found.keys() == expected.keys()
    assert [name for name in expected if not torch.equal(found[name], expected[name])] == []
    assert wrapper.spent.units == 3 * 5


@pytest.mark.parametrize("method", [SCL(weight=1e-3), HyPe(noise_std=1e-3), LNSR(weight=1e-3), ASA(weight=1e-3)])
def test_a_small_weight_is_not_plain_fine_tuning(method: Method) -> None:
    plain, regularized = tiny_bert(0.1), tiny_bert(0.1)
    expected = trained(plain, lambda data: plain(**data).loss)
    wrapper = RegularizedModel(regularized, [method])
    assert not torch.equal(trained(regularized, lambda data: wrapper(**data).loss)["losses"], expected["losses"])


@pytest.mark.parametrize("method", [SCL(weight=1), CAT(weight=1)])
def test_contrast_alone_trains_the_encoder_and_not_the_head(method: Method) -> None:
    model = tiny_bert(0.0)
    wrapper = RegularizedModel(model, [method])
    out = wrapper(**batch())
    assert float(out.loss.detach()) == pytest.approx(float(out.terms[method.key]), rel=SAME[torch.float64])
    out.loss.backward()
    norms = {name: 0.0 if p.grad is None else float(p.grad.norm()) for name, p in model.named_parameters()}
    above = {"classifier.weight", "classifier.bias", "bert.pooler.dense.weight", "bert.pooler.dense.bias"}
    assert {name for name in norms if norms[name] == 0} == above


def test_weight_one_stands_beside_a_method_without_a_term() -> None:
    out = RegularizedModel(tiny_bert(0.0), [HyPe(noise_std=0.1), SCL(weight=1)])(**batch())
    assert float(out.loss.detach()) == pytest.approx(float(out.terms["scl"]), rel=SAME[torch.float64])


@pytest.mark.parametrize("method", [SCL(weight=1), CAT(weight=1)])
def test_weight_one_beside_another_term_is_refused(method: Method) -> None:
    with pytest.raises(MethodError) as caught:
        RegularizedModel(tiny_bert(0.0), [method, LogitPenalty()])
    assert str(caught.value) == f"{method.key}.weight must be below 1 in a stack with logit_penalty; got 1."


def test_accumulated_micro_batches_have_pairs_of_their_own() -> None:
    model, data = tiny_bert(0.0), batch()
    data["labels"] = torch.tensor([0, 0, 1, 1, 2, 2])
    parts = [{name: value[i : i + 2] for name, value in data.items()} for i in (0, 2, 4)]
    whole = float(RegularizedModel(copy.deepcopy(model), [SCL()])(**data).terms["scl"])
    wrapper = RegularizedModel(model, [SCL()])
    assert whole > 0.1
    found = [float(wrapper(**part).terms["scl"]) for part in parts]  # two of one class: the positive has all the mass
    assert found == pytest.approx([0.0] * 3, abs=PRINTED[torch.float64])
