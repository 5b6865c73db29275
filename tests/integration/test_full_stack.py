"""CAT, LNSR, ASA and their stack in a plain loop: null settings, checkpointing, accumulation, autocast, resuming."""

import copy
import gc
import re
import warnings
import weakref
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from steadytune.encoders import SiteUnavailable
from steadytune.methods import ASA, CAT, LNSR, SCL, HyPe
from steadytune.methods import lnsr as lnsr_module
from steadytune.methods.contract import Method, MethodError
from steadytune.objective import RegularizedModel
from tiny import FAMILIES, gradients, inputs_of, rows_of, tiny_batch, tiny_model
from tolerances import REPLAYED, SAME

WITHOUT_ATTENTION = ("mpnet", "xlnet")
DEBERTA = ("deberta-v2", "deberta-v2-conv")
CHECKPOINTED = [family for family in FAMILIES if family not in ("albert", "mpnet", "xlnet")]
NAMES = ("cat", "lnsr", "asa", "stack")
DEPTH = 2
SPLITS = ([4, 4, 4, 4], [8, 8], [7, 5, 4])


def methods_of(name: str, family: str = "bert") -> list[Method]:
    """One method, or the whole stack of those that a family allows."""
    cat = CAT(weight=0.3, epsilon=0.5, temperature=0.5, projection_dim=8)
    lnsr = LNSR(weight=2.0, injection_layer=int(family == "deberta-v2-conv"))
    asa = ASA(weight=0.5)
    if name == "stack":
        return [SCL(weight=0.5), cat, HyPe(noise_std=0.05), lnsr, *([] if family in WITHOUT_ATTENTION else [asa])]
    alone: dict[str, Method] = {"cat": cat, "lnsr": lnsr, "asa": asa}
    return [alone[name]]


def cases(families: Sequence[str], *, apart: Sequence[str] = ()) -> Any:
    """The stack on each family, and each method by itself on some of them."""
    pairs = [(family, "stack") for family in families]
    pairs += [(family, name) for family in apart for name in NAMES[:-1]]
    return pytest.mark.parametrize(("family", "name"), pairs)


def wrapped(family: str, methods: Sequence[Method], **options: Any) -> RegularizedModel:
    return RegularizedModel(tiny_model(family, depth=DEPTH, **options), methods)


def trained(
    model: nn.Module,
    groups: Any,
    call: Callable[[int], Tensor],
    *,
    count: int = 2,
    before: Callable[[int], None] = lambda step: None,
) -> list[float]:
    """Losses of AdamW steps from one seed; weights and last gradients stay on the model."""
    optimizer = torch.optim.AdamW(groups, lr=1e-2)
    torch.manual_seed(1)
    losses = []
    for step in range(count):
        before(step)
        optimizer.zero_grad()
        loss = call(step)
        loss.backward()
        losses.append(loss.item())
        optimizer.step()
    return losses


def regularized(model: RegularizedModel, batch: Mapping[str, Tensor], **options: Any) -> list[float]:
    return trained(model, model.parameter_groups(1e-2), lambda step: model(**batch).loss, **options)


def assert_equal(ours: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> None:
    assert ours.keys() == expected.keys() and expected
    assert [name for name in expected if not torch.equal(ours[name], expected[name])] == []


def assert_close(ours: Mapping[str, Tensor], expected: Mapping[str, Tensor], tolerance: float) -> None:
    assert ours.keys() == expected.keys() and expected
    for name, value in expected.items():
        torch.testing.assert_close(ours[name], value, rtol=tolerance, atol=tolerance, msg=name)


def distance(one: Mapping[str, Tensor], other: Mapping[str, Tensor]) -> float:
    """Largest relative difference over all parameters together."""
    a, b = (torch.cat([g[name].flatten() for name in one]) for g in (one, other))
    return float((a - b).norm() / b.norm())


def checkpointed(model: Any, *, reentrant: bool = False) -> Any:
    with warnings.catch_warnings():  # the name of this method changes between versions
        warnings.simplefilter("ignore")
        model.gradient_checkpointing_enable({"use_reentrant": reentrant})
    return model


# -- null settings ----------------------------------------------------------------------------------------------------

NULL: dict[str, list[Method]] = {
    "lnsr, weight": [LNSR(weight=0.0)],
    "lnsr, noise": [LNSR(noise_std=0.0)],
    "asa, weight": [ASA(weight=0.0)],
    "stack": [SCL(weight=0.0), HyPe(noise_std=0.0), LNSR(weight=0.0), ASA(weight=0.0)],
}


@pytest.mark.parametrize("family", ["bert", "mpnet"])  # one of them without the attention site
@pytest.mark.parametrize("name", NULL)
def test_a_null_setting_is_plain_fine_tuning_bit_for_bit(name: str, family: str) -> None:
    plain, batch = tiny_model(family, depth=DEPTH), tiny_batch(family)
    expected = trained(plain, list(plain.parameters()), lambda step: plain(**batch).loss)
    model = wrapped(family, NULL[name])
    assert trained(model, list(model.model.parameters()), lambda step: model(**batch).loss) == expected
    assert_equal(model.model.state_dict(), plain.state_dict())


@pytest.mark.parametrize("name", NULL)
def test_a_null_setting_owns_nothing_and_costs_nothing(name: str) -> None:
    model = wrapped("bert", NULL[name])
    passes = model(**tiny_batch("bert")).passes
    assert (passes.forward, passes.activation_gradient, passes.weight_gradient) == (1, 1, 1)
    assert not list(model.method_modules.parameters())


@pytest.mark.parametrize("family", FAMILIES)
def test_cat_without_contrast_perturbation_and_dropout_is_plain_fine_tuning(family: str) -> None:
    """Two equal passes at half the weight each; nothing is counted twice."""
    settings: dict[str, Any] = {"dropout": 0.0, "depth": DEPTH, "dtype": torch.float64}
    plain, batch = tiny_model(family, **settings), tiny_batch(family)

    def by_hand(step: int) -> Tensor:  # DeBERTa's own loss is in float32
        return cross_entropy(plain(**inputs_of(batch)).logits, batch["labels"])

    expected = trained(plain, list(plain.parameters()), by_hand)
    model = wrapped(family, [CAT(weight=0.0, epsilon=0.0)], dropout=0.0, dtype=torch.float64)
    losses = trained(model, list(model.model.parameters()), lambda step: model(**batch).loss)
    assert losses == pytest.approx(expected, rel=SAME[torch.float64])
    assert_close(gradients(model.model), gradients(plain), SAME[torch.float64])


def test_cat_without_contrast_owns_nothing() -> None:
    assert not wrapped("bert", [CAT(weight=0.0)]).method_modules


# -- passes -----------------------------------------------------------------------------------------------------------


@cases(FAMILIES, apart=["bert"])
def test_the_clean_pass_has_the_dropout_of_plain_training(family: str, name: str) -> None:
    methods = [method for method in methods_of(name, family) if method.key != "hype"]  # whose noise is in this pass
    plain, model = tiny_model(family, depth=DEPTH), wrapped(family, methods)
    found = []
    for module in (plain, model):
        torch.manual_seed(4)
        module(**tiny_batch(family))
        logits = module(**tiny_batch(family)).logits  # the second step follows the first one's draws
        found.append((logits, torch.get_rng_state()))
    assert torch.equal(found[0][0], found[1][0]) and torch.equal(found[0][1], found[1][1])


UNITS = {"cat": (2, 3, 2), "lnsr": (2, 2, 2), "asa": (2, 2, 2), "stack": (4, 5, 4)}


@pytest.mark.parametrize("name", NAMES)
def test_a_stack_shares_the_clean_pass_and_counts_what_the_layers_saw(name: str) -> None:
    model, calls = wrapped("bert", methods_of(name)), [0]
    for layer in model.model.bert.encoder.layer:
        layer.register_forward_hook(lambda *_: calls.__setitem__(0, calls[0] + 1))
    passes = model(**tiny_batch("bert")).passes
    assert (passes.forward, passes.activation_gradient, passes.weight_gradient) == UNITS[name]
    assert calls[0] == DEPTH * UNITS[name][0]


def test_the_loss_of_the_stack_is_the_declared_sum() -> None:
    """SCL of weight 1/2 has odds 1, CAT of weight 0.3 has 3/7; LNSR and ASA enter with 2 and 1/2."""
    output = wrapped("bert", methods_of("stack"), dtype=torch.float64)(**tiny_batch("bert"))
    terms = output.terms
    assert list(terms) == ["scl", "cat", "lnsr", "asa"]
    parts = output.task_loss + terms["scl"] + 3 / 7 * terms["cat"] + 2 * terms["lnsr"] + 0.5 * terms["asa"]
    assert output.loss.item() == pytest.approx((parts / (2 + 3 / 7)).item(), rel=SAME[torch.float64])


@pytest.mark.parametrize("family", WITHOUT_ATTENTION)
def test_asa_is_refused_where_attention_takes_no_bias(family: str) -> None:
    expected = f"asa needs the site 'attention', which {family} lacks: its attention takes no additional bias."
    with pytest.raises(SiteUnavailable, match=f"^{re.escape(expected)}$"):
        wrapped(family, [ASA()])


def test_lnsr_is_refused_below_the_convolution_of_deberta() -> None:
    with pytest.raises(SiteUnavailable, match=r"^lnsr cannot resume a deberta-v2 with convolution at layer 0: .* 1 or"):
        wrapped("deberta-v2-conv", [LNSR()])


# -- gradient checkpointing -------------------------------------------------------------------------------------------


def one_step(model: RegularizedModel, family: str) -> tuple[float, dict[str, Tensor]]:
    torch.manual_seed(2)
    loss = model(**tiny_batch(family)).loss
    loss.backward()
    return loss.item(), gradients(model)


@cases([family for family in CHECKPOINTED if family not in DEBERTA], apart=["bert", "modernbert"])
def test_gradient_checkpointing_changes_no_bit(family: str, name: str) -> None:
    loss, expected = one_step(wrapped(family, methods_of(name, family)), family)
    model = RegularizedModel(checkpointed(tiny_model(family, depth=DEPTH)), methods_of(name, family))
    again, ours = one_step(model, family)
    assert again == loss
    assert_equal(ours, expected)


@pytest.mark.parametrize("name", NAMES)
def test_checkpointing_runs_the_layers_of_every_pass_again(name: str) -> None:
    model = RegularizedModel(checkpointed(tiny_model("bert", depth=DEPTH)), methods_of(name))
    calls: list[int] = []
    for layer in model.model.bert.encoder.layer:
        layer.attention.register_forward_hook(lambda *_: calls.append(1))
    output = model(**tiny_batch("bert"))
    early = int(name in ("cat", "stack"))  # CAT's gradient at the embeddings runs the clean pass once more
    assert len(calls) == DEPTH * (UNITS[name][0] + early)
    output.loss.backward()
    assert len(calls) == DEPTH * (2 * UNITS[name][0] + early)


@pytest.mark.parametrize("name", ["cat", "lnsr"])
@pytest.mark.parametrize("family", DEBERTA)
def test_gradient_checkpointing_of_deberta_changes_no_bit(family: str, name: str) -> None:
    loss, expected = one_step(wrapped(family, methods_of(name, family)), family)
    model = RegularizedModel(checkpointed(tiny_model(family, depth=DEPTH)), methods_of(name, family))
    again, ours = one_step(model, family)
    assert again == loss
    assert_equal(ours, expected)


OBSTACLE = "gradient checkpointing would compute its layers again without the bias; switch it off."


@pytest.mark.parametrize("name", ["asa", "stack"])
@pytest.mark.parametrize("family", DEBERTA)
def test_asa_on_a_checkpointed_deberta_is_refused(family: str, name: str) -> None:
    with pytest.raises(SiteUnavailable, match=re.escape(OBSTACLE)):
        RegularizedModel(checkpointed(tiny_model(family, depth=DEPTH)), methods_of(name, family))


def test_asa_on_a_deberta_that_is_checkpointed_later_is_refused() -> None:
    model = wrapped("deberta-v2", [ASA()])
    checkpointed(model.model)
    with pytest.raises(SiteUnavailable, match=re.escape(OBSTACLE)):
        model(**tiny_batch("deberta-v2"))


@pytest.mark.parametrize(("name", "named"), [("cat", "cat"), ("asa", "asa"), ("stack", "cat")])
def test_reentrant_checkpointing_is_refused_by_what_it_would_cut(name: str, named: str) -> None:
    model = RegularizedModel(checkpointed(tiny_model("bert"), reentrant=True), methods_of(name))
    expected = (
        f"{named} cannot act under re-entrant gradient checkpointing, which cuts its gradients; enable it with "
        "use_reentrant=False."
    )
    with pytest.raises(MethodError, match=f"^{re.escape(expected)}$"):
        model(**tiny_batch("bert"))


@pytest.mark.parametrize("family", [family for family in CHECKPOINTED if family not in DEBERTA])
def test_reentrant_checkpointing_changes_only_the_order_of_addition_in_lnsr(family: str) -> None:
    """DeBERTa is left out: the plain model fails."""
    loss, expected = one_step(wrapped(family, [LNSR()], dtype=torch.float64), family)
    saving = checkpointed(tiny_model(family, depth=DEPTH, dtype=torch.float64), reentrant=True)
    again, ours = one_step(RegularizedModel(saving, [LNSR()]), family)
    assert again == pytest.approx(loss, rel=REPLAYED)
    assert_close(ours, expected, 1000 * REPLAYED)


# -- accumulation -----------------------------------------------------------------------------------------------------


@pytest.fixture
def constant_noise(monkeypatch: pytest.MonkeyPatch) -> None:
    """LNSR's draw depends on the state alone, so a row has the same noise in every batch."""

    def draw(states: Tensor, real: Tensor, **settings: Any) -> Tensor:
        return settings["scale"] * states.detach().roll(1, dims=-1) * real[..., None]

    monkeypatch.setattr(lnsr_module, "draw_perturbation", draw)


def accumulated(model: RegularizedModel, parts: Sequence[dict[str, Tensor]]) -> tuple[float, dict[str, Tensor]]:
    model.zero_grad()
    total = 0.0
    for output in model.accumulate(parts):
        output.loss.backward()
        total += output.loss.item()
    return total, gradients(model)


EXAMPLEWISE: dict[str, list[Method]] = {
    "lnsr": [LNSR(weight=2.0)],
    "lnsr, absolute": [LNSR(weight=2.0, relative=False, normalize=False, draws=2)],
    "asa": [ASA()],
    "asa, normalized": [ASA(parameterization="normalized", protect="cls_col", weight=0.5)],
    "asa, nothing protected": [ASA(protect="none", shared=True)],
    "asa, no adversary": [ASA(adversary="none", share_dropout=False)],
    "cat without contrast and perturbation": [CAT(weight=0.0, epsilon=0.0)],
    "stack": [
        SCL(weight=0.5, gather_across_accumulation=True),
        CAT(weight=0.0, epsilon=0.0),
        LNSR(weight=2.0),
        ASA(weight=0.5),
    ],
}


@pytest.mark.usefixtures("constant_noise")
@pytest.mark.parametrize("name", EXAMPLEWISE)
def test_a_split_batch_has_the_gradient_of_the_whole_where_a_term_is_a_mean_over_examples(name: str) -> None:
    batch = tiny_batch("bert", rows=16)
    model = wrapped("bert", EXAMPLEWISE[name], dropout=0.0, dtype=torch.float64)
    whole, expected = accumulated(model, [batch])
    for split in SPLITS:
        total, ours = accumulated(model, rows_of(batch, split))
        assert total == pytest.approx(whole, abs=SAME[torch.float64]), split
        assert_close(ours, expected, SAME[torch.float64])


@pytest.mark.parametrize("family", [family for family in FAMILIES if family not in WITHOUT_ATTENTION])
def test_the_adversary_of_every_family_accumulates(family: str) -> None:
    batch, model = tiny_batch(family, rows=16), wrapped(family, [ASA()], dropout=0.0, dtype=torch.float64)
    _, expected = accumulated(model, [batch])
    _, ours = accumulated(model, rows_of(batch, [7, 5, 4]))
    assert any(name.startswith("method_modules.asa") and gradient.any() for name, gradient in expected.items())
    assert_close(ours, expected, SAME[torch.float64])


@pytest.mark.usefixtures("constant_noise")
@pytest.mark.parametrize("family", FAMILIES)
def test_the_penalty_of_every_family_accumulates(family: str) -> None:
    model, batch = wrapped(family, methods_of("lnsr", family), dropout=0.0, dtype=torch.float64), tiny_batch(family)
    _, expected = accumulated(model, [batch])
    _, ours = accumulated(model, rows_of(batch, [3, 1]))
    assert_close(ours, expected, SAME[torch.float64])


@pytest.mark.parametrize(
    "cat", [CAT(weight=0.5, epsilon=0.0, projection_dim=8), CAT(weight=0.0, epsilon=0.5)], ids=["contrast", "r"]
)
def test_negatives_and_perturbation_of_cat_belong_to_a_micro_batch(cat: CAT) -> None:
    batch, model = tiny_batch("bert", rows=16), wrapped("bert", [cat], dropout=0.0, dtype=torch.float64)
    _, expected = accumulated(model, [batch])
    _, ours = accumulated(model, rows_of(batch, [4, 4, 4, 4]))
    assert distance(ours, expected) > 0.01


# -- autocast ---------------------------------------------------------------------------------------------------------


@cases(FAMILIES, apart=["bert"])
def test_loss_and_gradients_are_finite_under_bfloat16_autocast(family: str, name: str) -> None:
    model = wrapped(family, methods_of(name, family))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        output = model(**tiny_batch(family))
    output.loss.backward()
    assert output.logits.dtype == torch.bfloat16 and output.loss.dtype == torch.float32
    found = gradients(model)
    assert output.loss.isfinite() and [n for n, gradient in found.items() if not gradient.isfinite().all()] == []
    assert {n for n, _ in model.method_modules.named_parameters(prefix="method_modules")} <= found.keys()


def test_lnsr_refuses_noise_that_bfloat16_autocast_would_round_away() -> None:
    expected = r"^lnsr\.noise_std gives noise of 1\.0e-02 times the norm of the states, which in bfloat16 is lost in "
    with pytest.raises(MethodError, match=expected), torch.autocast("cpu", dtype=torch.bfloat16):
        wrapped("bert", [LNSR(noise_std=0.01)])(**tiny_batch("bert"))


def test_lnsr_accepts_small_noise_in_float32() -> None:
    assert wrapped("bert", [LNSR(noise_std=0.01)])(**tiny_batch("bert")).terms["lnsr"] > 0


# -- nothing is left behind -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", ["bert", "xlnet"])
def test_evaluation_inside_training_leaves_no_trace(family: str) -> None:
    batch, found = tiny_batch(family), []
    for evaluated in (False, True):
        model = wrapped(family, methods_of("stack", family))

        def evaluate(step: int, model: RegularizedModel = model, active: bool = evaluated) -> None:
            if active:
                model.eval()
                with torch.no_grad():
                    model(**batch)
                model.train()

        found.append((regularized(model, batch, before=evaluate), model.state_dict()))
    assert found[0][0] == found[1][0]
    assert_equal(found[1][1], found[0][1])


@pytest.mark.usefixtures("imports_stay_out_of_garbage_collection")
@pytest.mark.parametrize("name", NAMES)
def test_no_state_of_any_pass_outlives_its_step(name: str) -> None:
    kept: list[weakref.ref[Tensor]] = []
    model, batch = wrapped("bert", methods_of(name)), tiny_batch("bert")
    for layer in model.model.bert.encoder.layer:
        layer.attention.register_forward_hook(lambda *call: kept.append(weakref.ref(call[-1][0])))
    gc.collect()
    gc.disable()  # activations must not wait for the collector of cycles
    try:
        output = model(**batch)
        output.loss.backward()
        del output
        assert [reference() is None for reference in kept] == [True] * (DEPTH * UNITS[name][0])
    finally:
        gc.enable()


@pytest.mark.parametrize("name", NAMES)
def test_a_copy_carries_parameters_and_no_hooks(name: str) -> None:
    model = wrapped("bert", methods_of(name))
    regularized(model, tiny_batch("bert"), count=1)
    twin = copy.deepcopy(model)
    assert_equal(twin.state_dict(), model.state_dict())
    with pytest.raises(RuntimeError, match="closed or a copy"):
        twin(**tiny_batch("bert"))


@pytest.mark.parametrize("name", NAMES)
def test_what_is_saved_is_the_plain_encoder(name: str, tmp_path: Path) -> None:
    model = wrapped("bert", methods_of(name))
    regularized(model, tiny_batch("bert"), count=1)
    model.save_pretrained(tmp_path)
    assert sorted(file.name for file in tmp_path.iterdir()) == ["config.json", "model.safetensors"]
    loaded = type(model.model).from_pretrained(tmp_path).eval()
    inputs = inputs_of(tiny_batch("bert"))
    assert torch.equal(loaded(**inputs).logits, model.eval()(**inputs).logits)


# -- own parameters ---------------------------------------------------------------------------------------------------


def test_each_method_has_a_group_of_its_own_and_asa_decays_nothing() -> None:
    model = wrapped("bert", [CAT(), ASA(learning_rate_scale=5.0)])
    groups = {group["name"]: group for group in model.parameter_groups(lr=1e-3, weight_decay=0.1)}
    found = {name: (group["lr"], group["weight_decay"]) for name, group in groups.items()}
    assert found == {
        "encoder": (1e-3, 0.1),
        "encoder, no decay": (1e-3, 0.0),
        "cat": (1e-3, 0.1),
        "asa": (5e-3, 0.0),
    }
    for key in ("cat", "asa"):
        own = [id(p) for p in model.method_modules[key].parameters()]
        assert [id(p) for p in groups[key]["params"]] == own and own


def test_encoder_projection_and_adversary_are_clipped_each_by_its_own_norm() -> None:
    model = wrapped("bert", methods_of("stack"))
    model(**tiny_batch("bert")).loss.backward()
    parts = [model.model, model.method_modules["cat"], model.method_modules["asa"]]

    def norms() -> list[float]:
        return [float(nn.utils.get_total_norm([p.grad for p in part.parameters()])) for part in parts]

    assert min(norms()) > 1e-3
    model.clip_grad_norm_(1e-4)
    assert norms() == pytest.approx([1e-4] * 3, rel=0.02)  # torch adds 1e-6 to the norm that it divides by


def test_a_resumed_stack_continues_streams_parameters_and_price(tmp_path: Path) -> None:
    methods = [*methods_of("stack")[:-1], ASA(target_mask_fraction=0.2)]
    batch = tiny_batch("bert")

    def start() -> tuple[RegularizedModel, torch.optim.Optimizer]:
        model = RegularizedModel(tiny_model("bert"), methods, seed=5)
        return model, torch.optim.AdamW(model.parameter_groups(1e-2))

    def step(model: RegularizedModel, optimizer: torch.optim.Optimizer) -> float:
        optimizer.zero_grad()
        loss = model(**batch).loss
        loss.backward()
        optimizer.step()
        return float(loss.detach())

    torch.manual_seed(0)
    unbroken, optimizer = start()
    for _ in range(2):
        step(unbroken, optimizer)
    unbroken.save_state(tmp_path)
    saved = copy.deepcopy((unbroken.model.state_dict(), optimizer.state_dict(), torch.get_rng_state()))
    expected = [step(unbroken, optimizer) for _ in range(2)]

    resumed, optimizer = start()
    resumed.model.load_state_dict(saved[0])
    optimizer.load_state_dict(saved[1])
    torch.set_rng_state(saved[2])
    resumed.load_state(tmp_path)
    assert [step(resumed, optimizer) for _ in range(2)] == expected
    assert_equal(resumed.state_dict(), unbroken.state_dict())
    assert resumed.method_modules["asa"].log_multiplier != 0
