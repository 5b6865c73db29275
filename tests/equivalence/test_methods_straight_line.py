"""SCL, HyPe and their stack against one straight line of code that knows nothing of passes, sites and steps."""

import copy
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
import transformers
from torch import Tensor, nn

from dummies import LogitPenalty
from steadytune import SCL, HyPe, RegularizedModel
from steadytune.functional import keyed_generator
from steadytune.methods import Method, MethodError
from tolerances import PRINTED, SAME

DEPTH, SEED = 2, 11
CLOSE: dict[str, float] = {"rtol": SAME[torch.float64], "atol": SAME[torch.float64]}


def tiny_bert(dropout: float, dtype: torch.dtype = torch.float64) -> Any:
    config = transformers.BertConfig(
        vocab_size=50,
        hidden_size=32,
        num_hidden_layers=DEPTH,
        num_attention_heads=4,
        intermediate_size=48,
        max_position_embeddings=16,
        hidden_dropout_prob=dropout,
        attention_probs_dropout_prob=dropout,
        num_labels=3,
    )
    with torch.random.fork_rng():
        torch.manual_seed(3)
        model = transformers.BertForSequenceClassification(config)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(0.1 * torch.randn_like(parameter))
    return model.to(dtype).train()


def batch(step: int = 0) -> dict[str, Tensor]:
    generator = keyed_generator("cpu", "batch", step)
    ids = torch.randint(5, 50, (6, 9), generator=generator)
    mask = (torch.arange(9) < torch.tensor([9, 7, 5, 9, 8, 3])[:, None]).long()
    return {"input_ids": ids * mask, "attention_mask": mask, "labels": torch.tensor([0, 1, 0, 2, 1, 0])}


# -- the straight line ------------------------------------------------------------------------------------------------


def noise(like: Tensor, hype: HyPe, place: str, layer: int, step: int) -> Tensor:
    """What `hype` adds to the states that stand at this place."""
    if hype.place not in (place, "both") or (hype.layers is not None and layer not in hype.layers):
        return torch.zeros_like(like)
    generator = keyed_generator("cpu", SEED, "hype", step, 0, "clean", place, layer)
    drawn = torch.empty_like(like, requires_grad=False)
    if hype.distribution == "normal":
        drawn = drawn.normal_(0, hype.noise_std, generator=generator)
    else:
        drawn = drawn.uniform_(-hype.noise_std, hype.noise_std, generator=generator)
    if hype.relative:
        drawn = drawn * (like.detach() ** 2).mean(dim=2, keepdim=True) ** 0.5
    return drawn


def forward(model: Any, inputs: dict[str, Tensor], hype: HyPe | None, step: int) -> tuple[Tensor, Tensor]:
    """Logits and the final state of the first token, module by module."""
    readable = inputs["attention_mask"].bool()[:, None, None, :].expand(-1, -1, 9, -1)
    states = model.bert.embeddings(input_ids=inputs["input_ids"])
    for index, layer in enumerate(model.bert.encoder.layer):
        if hype is not None:
            states = states + noise(states, hype, "between", index, step)
        attended, _ = layer.attention(states, readable)
        if hype is not None:
            attended = attended + noise(attended, hype, "inside", index, step)
        states = layer.output(layer.intermediate(attended), attended)
    pooled = torch.tanh(model.bert.pooler.dense(states[:, 0]))
    return model.classifier(model.dropout(pooled)), states[:, 0]


def cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    rows = [logits[i].logsumexp(dim=0) - logits[i, label] for i, label in enumerate(labels.tolist())]
    return torch.stack(rows).mean()


def contrast(vectors: Tensor, labels: Tensor, tau: float) -> Tensor:
    classes, total = labels.tolist(), vectors.new_zeros(())
    for i, anchor in enumerate(vectors):
        others = [k for k in range(len(vectors)) if k != i]
        scores = {k: anchor @ vectors[k] / (anchor.norm() * vectors[k].norm() * tau) for k in others}
        mass = torch.stack([score.exp() for score in scores.values()]).sum()
        positives = [k for k in others if classes[k] == classes[i]]
        for j in positives:
            total = total - (scores[j].exp() / mass).log() / len(positives)
    return total / len(vectors)


def straight_line(model: Any, methods: Sequence[Method], step: int) -> tuple[Tensor, Tensor, Tensor | None]:
    """Total, label loss and contrast."""
    data = batch(step)
    hype = next((m for m in methods if isinstance(m, HyPe)), None)
    scl = next((m for m in methods if isinstance(m, SCL)), None)
    logits, vector = forward(model, data, hype, step)
    label_loss = cross_entropy(logits, data["labels"])
    if scl is None:
        return label_loss, label_loss, None
    term = contrast(vector, data["labels"], scl.temperature)
    return (1 - scl.weight) * label_loss + scl.weight * term, label_loss, term


STACKS: dict[str, list[Method]] = {
    "scl": [SCL(weight=0.9, temperature=0.3)],
    "scl, other settings": [SCL(weight=0.25, temperature=1.0)],
    "hype normal": [HyPe(noise_std=0.1)],
    "hype uniform": [HyPe(noise_std=0.1, distribution="uniform")],
    "hype relative": [HyPe(noise_std=0.1, relative=True)],
    "hype lower layer": [HyPe(noise_std=0.1, layers=(0,))],
    "hype upper layer": [HyPe(noise_std=0.1, layers=(1,))],
    "hype inside": [HyPe(noise_std=0.1, place="inside")],
    "hype both": [HyPe(noise_std=0.1, place="both")],
    "hype and scl": [HyPe(noise_std=0.1), SCL(weight=0.9, temperature=0.3)],
    "hype everywhere and scl": [HyPe(noise_std=0.1, place="both", relative=True, layers=(1,)), SCL(weight=0.5)],
}


def gradients(model: nn.Module) -> dict[str, Tensor]:
    return {name: parameter.grad.clone() for name, parameter in model.named_parameters() if parameter.grad is not None}


@pytest.mark.parametrize("dropout", [0.0, 0.1])
@pytest.mark.parametrize("stack", STACKS)
def test_value_and_gradient_equal_the_straight_line(stack: str, dropout: float) -> None:
    methods = STACKS[stack]
    ours, theirs = tiny_bert(dropout), tiny_bert(dropout)
    wrapper = RegularizedModel(ours, methods, seed=SEED)
    for step in range(2):  # the second step draws other noise
        torch.manual_seed(step)
        found = wrapper(**batch(step))
        found.loss.backward()
        torch.manual_seed(step)
        total, label_loss, term = straight_line(theirs, methods, step)
        total.backward()
        torch.testing.assert_close(found.loss, total, **CLOSE)
        torch.testing.assert_close(found.task_loss, label_loss, **CLOSE)
        if term is not None:
            torch.testing.assert_close(found.terms["scl"], term, **CLOSE)
        expected = gradients(theirs)
        assert expected.keys() == dict(theirs.named_parameters()).keys()
        torch.testing.assert_close(gradients(ours), expected, **CLOSE)
        ours.zero_grad()
        theirs.zero_grad()


def test_coefficients_of_a_stack_are_those_of_the_paper() -> None:
    wrapper = RegularizedModel(tiny_bert(0.0), STACKS["hype and scl"])
    assert wrapper.coefficients.task == pytest.approx(1 - 0.9)
    assert wrapper.coefficients.terms == {"scl": pytest.approx(0.9)}


@pytest.mark.parametrize("weight", [0.3, 0.5, 0.9, 1.0])
def test_loss_is_the_convex_mix_of_its_reported_parts(weight: float) -> None:
    out = RegularizedModel(tiny_bert(0.1), [SCL(weight=weight)], seed=SEED)(**batch())
    expected = (1 - weight) * float(out.task_loss) + weight * float(out.terms["scl"])
    assert float(out.loss.detach()) == pytest.approx(expected, rel=SAME[torch.float64])


# -- limits of the settings -------------------------------------------------------------------------------------------


def trained(model: Any, loss_of: Callable[[dict[str, Tensor]], Tensor]) -> dict[str, Tensor]:
    """Every weight, moment and the random state after 5 steps of AdamW."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    torch.manual_seed(5)
    losses = []
    for step in range(5):
        loss = loss_of(batch(step))
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.detach())
    moments = {f"{i}/{k}": v for i, state in optimizer.state_dict()["state"].items() for k, v in state.items()}
    return {**model.state_dict(), **moments, "losses": torch.stack(losses), "random": torch.get_rng_state()}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("dropout", [0.0, 0.1])
@pytest.mark.parametrize(
    "methods", [[SCL(weight=0)], [HyPe(noise_std=0)], [HyPe(noise_std=0, place="both"), SCL(weight=0)]]
)
def test_null_setting_is_plain_fine_tuning_bit_for_bit(
    methods: list[Method], dropout: float, dtype: torch.dtype
) -> None:
    plain, regularized = tiny_bert(dropout, dtype), tiny_bert(dropout, dtype)
    expected = trained(plain, lambda data: plain(**data).loss)
    wrapper = RegularizedModel(regularized, methods, seed=SEED)
    found = trained(regularized, lambda data: wrapper(**data).loss)
    assert found.keys() == expected.keys()
    assert [name for name in expected if not torch.equal(found[name], expected[name])] == []


def test_a_small_weight_is_not_plain_fine_tuning() -> None:
    plain, regularized = tiny_bert(0.1), tiny_bert(0.1)
    expected = trained(plain, lambda data: plain(**data).loss)
    wrapper = RegularizedModel(regularized, [SCL(weight=1e-3)])
    assert not torch.equal(trained(regularized, lambda data: wrapper(**data).loss)["losses"], expected["losses"])


def test_contrast_alone_trains_the_encoder_and_not_the_head() -> None:
    model = tiny_bert(0.0)
    wrapper = RegularizedModel(model, [SCL(weight=1)])
    out = wrapper(**batch())
    assert float(out.loss.detach()) == pytest.approx(float(out.terms["scl"]), rel=SAME[torch.float64])
    out.loss.backward()
    norms = {name: 0.0 if p.grad is None else float(p.grad.norm()) for name, p in model.named_parameters()}
    above = {"classifier.weight", "classifier.bias", "bert.pooler.dense.weight", "bert.pooler.dense.bias"}
    assert {name for name in norms if norms[name] == 0} == above


def test_weight_one_stands_beside_a_method_without_a_term() -> None:
    out = RegularizedModel(tiny_bert(0.0), [HyPe(noise_std=0.1), SCL(weight=1)])(**batch())
    assert float(out.loss.detach()) == pytest.approx(float(out.terms["scl"]), rel=SAME[torch.float64])


def test_weight_one_beside_another_term_is_refused() -> None:
    with pytest.raises(MethodError) as caught:
        RegularizedModel(tiny_bert(0.0), [SCL(weight=1), LogitPenalty()])
    assert str(caught.value) == "scl.weight must be below 1 in a stack with logit_penalty; got 1."


def test_accumulated_micro_batches_have_pairs_of_their_own() -> None:
    model, data = tiny_bert(0.0), batch()
    data["labels"] = torch.tensor([0, 0, 1, 1, 2, 2])
    parts = [{name: value[i : i + 2] for name, value in data.items()} for i in (0, 2, 4)]
    whole = float(RegularizedModel(copy.deepcopy(model), [SCL()])(**data).terms["scl"])
    wrapper = RegularizedModel(model, [SCL()])
    assert whole > 0.1
    found = [float(wrapper(**part).terms["scl"]) for part in parts]  # two of one class: the positive has all the mass
    assert found == pytest.approx([0.0] * 3, abs=PRINTED[torch.float64])
