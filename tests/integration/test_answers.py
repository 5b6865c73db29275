"""Choices and answers in a text through the engine: gradients, the stock trainer, and every method."""

import importlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor
from torch.utils.data import Dataset
from transformers import Trainer

from steadytune import CAT, LNSR, PGD, ChildTuning, FreeLB, HyPe, RDrop, RegularizedModel, RegularizedTrainer
from steadytune.encoders import Edits, SiteUnavailable
from steadytune.methods import METHODS, Method, MethodError, method_class
from steadytune.methods.cards import read_card
from steadytune.methods.contract import Pass
from tiny import FAMILIES, gradients, rows_of
from tinyanswers import TASKS, AnswerTask, alone, answer_batch, answer_model, choice_batch, place_batch
from tinytrainer import CLOSE, EXACT, Spy, arguments, assert_close_gradients
from tolerances import SAME

pytestmark = pytest.mark.usefixtures("imports_stay_out_of_garbage_collection")

SPLITS = [[4, 4], [5, 2, 1]]
REFUSED = {
    (key, task): f"{key} cannot act on a {task} task: {reason}."
    for key, reason in {
        "scl": "it pairs examples of equal class, and here an example does not have one class",
        "tmix": "it mixes texts that have one label each; leave it out",
        "label_smoothing": "it softens the class of a text, and here a text does not have one class; leave it out",
    }.items()
    for task in TASKS
}
"""Methods without a meaning for a task, and what they say; all others train."""

OF_THE_BATCH = {"cat", "sam"}
"""Methods whose term or direction belongs to a batch as a whole, so that it is another one if the batch is split."""

DRAWN_PER_PASS = {"mixout"}
"""Methods that draw, like dropout, once for all rows of a pass; a split batch has several draws."""

OF_DROPOUT = {"rdrop"}
"""Methods that are nothing without dropout and say so; see `Shift`."""

every_task = pytest.mark.parametrize("task", TASKS)
every_family = pytest.mark.parametrize("family", FAMILIES)
acting = [(key, task) for key in METHODS for task in TASKS if (key, task) not in REFUSED]


@dataclass(frozen=True, kw_only=True)
class Shift(Method):
    """Moves the states of one pass by a fixed vector, so that it differs from the others without any chance."""

    key: ClassVar[str] = "shift"
    of: str = "rdrop"

    def edits(self, now: Pass) -> Edits | None:
        if now.name != self.of:
            return None
        return Edits(hidden=lambda layer, states: states + 0.1 * torch.arange(states.shape[-1]).cos())


def ready(wrapper: RegularizedModel, batch: dict[str, Tensor]) -> RegularizedModel:
    """With all that a method asks for before the first step."""
    wrapper.attach(torch.optim.SGD(wrapper.parameter_groups(lr=0.0)), total_updates=10)
    if wrapper.wants_survey:
        wrapper.survey([batch])
    return wrapper


def built(key: str, task: AnswerTask) -> Method:
    """With its defaults, but an effect that can be seen in float32 and no gradient blown up beyond comparison."""
    kind = method_class(key)
    wanted = {"noise_std": 0.05, "gain": 1.0, **({"pooler": False} if task == "question_answering" else {})}
    return kind(**{name: value for name, value in wanted.items() if name in kind.__dataclass_fields__})


def step_of(model: RegularizedModel, *batches: dict[str, Tensor]) -> dict[str, Tensor]:
    """Loss and every gradient of one optimizer step over these batches."""
    model.zero_grad()
    total = torch.zeros((), dtype=torch.float64)
    outputs = model.accumulate(batches) if len(batches) > 1 else [model(**batches[0])]
    for output in outputs:
        output.loss.backward()
        total += output.loss.detach()
    return {"loss": total, **gradients(model)}


# -- the label loss ---------------------------------------------------------------------------------------------------


@every_task
@every_family
def test_a_padded_batch_has_the_loss_and_gradient_that_transformers_gives_its_rows_alone(
    family: str, task: AnswerTask
) -> None:
    batch, model = answer_batch(family, task), answer_model(family, task, depth=2)
    losses = [model(**alone(batch, row)).loss for row in range(8)]
    expected = torch.stack(losses).mean()
    expected.backward()
    by_hand = gradients(model)
    model.zero_grad()
    found = step_of(RegularizedModel(model), batch)
    torch.testing.assert_close(found.pop("loss"), expected.detach(), **EXACT)
    assert_close_gradients(found, {f"model.{name}": gradient for name, gradient in by_hand.items()})


@every_task
@every_family
def test_a_split_batch_has_the_loss_and_gradient_of_the_whole(family: str, task: AnswerTask) -> None:
    batch, model = answer_batch(family, task), RegularizedModel(answer_model(family, task, depth=2))
    whole = step_of(model, batch)
    for split in SPLITS:
        torch.testing.assert_close(step_of(model, *rows_of(batch, split)), whole, **EXACT)


@every_task
def test_rows_without_a_label_do_not_count_in_a_split_batch(task: AnswerTask) -> None:
    batch, model = answer_batch("bert", task), RegularizedModel(answer_model("bert", task))
    batch["labels"][[0, 1, 5, 7]] = torch.where(batch["labels"] == 1, 0, batch["labels"])[[0, 1, 5, 7]]
    if task == "question_answering":
        batch["labels"][[0, 1, 5, 7]] = -100
    whole = step_of(model, batch)
    torch.testing.assert_close(step_of(model, *rows_of(batch, [5, 2, 1])), whole, **EXACT)


# -- methods ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def constant_draws(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every draw gives one vector of its scale, so that what is left is a function of the examples alone."""

    def constant(like: Tensor, scale: float, *_: Any) -> Tensor:
        wave = torch.arange(like.shape[-1], dtype=like.dtype).cos()  # equal entries would vanish in a layer norm
        return (scale * wave).expand(like.shape).clone()

    for key in METHODS:
        module = importlib.import_module(f"steadytune.methods.{key}")
        if hasattr(module, "draw_noise"):
            monkeypatch.setattr(module, "draw_noise", constant)


@pytest.mark.parametrize(
    ("key", "task"), [(k, t) for k, t in acting if k not in OF_THE_BATCH | DRAWN_PER_PASS | OF_DROPOUT]
)
@pytest.mark.usefixtures("constant_draws")
def test_with_a_method_a_split_batch_has_the_loss_and_gradient_of_the_whole(key: str, task: AnswerTask) -> None:
    batch, model = answer_batch("bert", task), answer_model("bert", task)
    wrapper = ready(RegularizedModel(model, [built(key, task)]), batch)
    whole = step_of(wrapper, batch)
    for split in SPLITS:
        torch.testing.assert_close(step_of(wrapper, *rows_of(batch, split)), whole, **EXACT)


@every_task
def test_with_rdrop_a_split_batch_has_the_loss_and_gradient_of_the_whole(task: AnswerTask) -> None:
    batch, model = answer_batch("bert", task), RegularizedModel(answer_model("bert", task), [RDrop(), Shift()])
    whole = step_of(model, batch)
    assert model(**batch).terms["rdrop"] > 0
    for split in SPLITS:
        torch.testing.assert_close(step_of(model, *rows_of(batch, split)), whole, **EXACT)


@pytest.mark.parametrize("family", ["roberta", "distilbert", "deberta-v2", "modernbert"])
@pytest.mark.parametrize("key", ["hype", "lnsr", "asa", "pgd"])
@every_task
@pytest.mark.usefixtures("constant_draws")
def test_methods_act_alike_on_every_family(key: str, task: AnswerTask, family: str) -> None:
    batch, model = answer_batch(family, task), answer_model(family, task, depth=2)
    wrapper = ready(RegularizedModel(model, [built(key, task)]), batch)
    whole = step_of(wrapper, batch)
    tolerance = SAME[torch.float32 if family == "modernbert" else torch.float64]  # its rotations are float32
    torch.testing.assert_close(step_of(wrapper, *rows_of(batch, [5, 2, 1])), whole, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("method", [HyPe(noise_std=0.1), LNSR(), PGD(), FreeLB(), CAT()], ids=lambda m: str(m.key))
def test_what_stands_where_a_row_has_no_choice_does_not_matter(method: Method) -> None:
    batch = answer_batch("bert", "multiple_choice")
    other = {**batch, "input_ids": torch.where(batch["labels"][..., None] == -100, 7, batch["input_ids"])}
    found = []
    for given in (batch, other):
        wrapper = RegularizedModel(answer_model("bert", "multiple_choice", dropout=0.1), [method])
        torch.manual_seed(0)
        found.append(step_of(wrapper, given))
    assert found[0].keys() == found[1].keys()
    assert [name for name in found[0] if not torch.equal(found[0][name], found[1][name])] == []


def test_a_choice_that_is_not_there_is_not_counted_as_unmoved() -> None:
    wrapper = RegularizedModel(answer_model("bert", "multiple_choice"), [PGD()])
    wrapper(**answer_batch("bert", "multiple_choice"))
    assert wrapper.drain_telemetry()["pgd/zero_perturbation_fraction"] == 0


@pytest.mark.parametrize(("key", "task"), acting)
def test_every_method_trains_with_the_passes_that_its_card_states(key: str, task: AnswerTask) -> None:
    batches = [answer_batch("bert", task), choice_batch("bert") if task == "multiple_choice" else place_batch("bert")]
    wrapper = RegularizedModel(answer_model("bert", task, dropout=0.1, dtype=torch.float32), [built(key, task)])
    before = {name: value.clone() for name, value in wrapper.model.state_dict().items()}
    optimizer = torch.optim.AdamW(wrapper.parameter_groups(lr=1e-2))
    wrapper.attach(optimizer, total_updates=10)
    if wrapper.wants_survey:
        wrapper.survey(batches)
    front = read_card(key).front
    for batch in batches:
        out = wrapper(**batch)
        assert bool(out.loss.isfinite()) and all(bool(term.isfinite()) for term in out.terms.values())
        assert out.passes.forward - 1 == pytest.approx(front["extra_forward"])
        backward = (out.passes.activation_gradient + out.passes.weight_gradient) / 2
        assert backward - 1 == pytest.approx(front["extra_backward"])
        out.loss.backward()
        assert all(bool(gradient.isfinite().all()) for gradient in gradients(wrapper).values())
        optimizer.step()
        optimizer.zero_grad()
    wrapper.finish()
    assert any(
        not torch.equal(before[name], value) for name, value in wrapper.model.state_dict().items() if name in before
    )


@every_task
def test_a_survey_looks_at_single_rows(task: AnswerTask) -> None:
    batch, model = answer_batch("bert", task), answer_model("bert", task)
    wrapper = RegularizedModel(model, [ChildTuning(mode="D")])
    wrapper.survey([batch])
    model.eval()
    squares = torch.zeros(())
    for row in range(8):
        model.zero_grad()
        model(**alone(batch, row)).loss.backward()
        squares = squares + gradients(model)["bert.encoder.layer.0.output.dense.weight"].square()
    kept = wrapper.method_modules["child_tuning"].mask("bert.encoder.layer.0.output.dense.weight")
    assert 0 < kept.sum() < kept.numel()
    assert squares[kept].min() > squares[~kept].max()


@pytest.mark.parametrize(("key", "task"), REFUSED)
def test_a_method_without_a_meaning_for_the_task_is_refused(key: str, task: AnswerTask) -> None:
    with pytest.raises(MethodError) as caught:
        RegularizedModel(answer_model("bert", task), [method_class(key)()])
    assert str(caught.value) == REFUSED[key, task]


def padded_on_the_left(batch: dict[str, Tensor]) -> dict[str, Tensor]:
    """The same rows; places of answers are counted without padding, so they stay."""
    sizes = batch["attention_mask"].sum(dim=-1).flatten().tolist()
    whole = batch["attention_mask"].shape
    return {
        name: value
        if name == "labels"
        else torch.stack([row.roll(-size, -1) for row, size in zip(value.flatten(0, -2), sizes, strict=True)]).view(
            whole
        )
        for name, value in batch.items()
    }


def test_a_head_that_reads_every_token_takes_padding_on_either_side() -> None:
    batch, model = answer_batch("deberta-v2", "question_answering"), answer_model("deberta-v2", "question_answering")
    wrapper = RegularizedModel(model, [PGD()])
    losses = [wrapper(**given).loss for given in (padded_on_the_left(batch), batch)]
    torch.testing.assert_close(*losses, **EXACT)


def test_a_head_that_reads_one_token_of_each_choice_needs_it_to_be_no_padding() -> None:
    batch = padded_on_the_left(choice_batch("bert"))
    with pytest.raises(
        MethodError, match=r"^the token that the head reads \(position 0\) is padding in some rows; pad "
    ):
        RegularizedModel(answer_model("bert", "multiple_choice"), [PGD()])(**batch)


def test_a_contrast_of_what_enters_the_label_map_needs_one_vector_per_text() -> None:
    with pytest.raises(SiteUnavailable) as caught:
        RegularizedModel(answer_model("bert", "question_answering"), [CAT(pooled_source="label_input")])
    assert str(caught.value) == (
        "cat needs the site 'pooled', which bert lacks: its head reads every token, not one vector per text."
    )


@every_family
def test_choices_are_contrasted_by_what_enters_the_label_map(family: str) -> None:
    model = RegularizedModel(answer_model(family, "multiple_choice"), [CAT(pooled_source="label_input")])
    assert bool(model(**answer_batch(family, "multiple_choice")).loss.isfinite())


def test_a_model_of_transformers_with_its_usual_two_labels_has_a_label_map_for_choices() -> None:
    model: Any = answer_model("bert", "multiple_choice")
    model.config.num_labels = 2  # as every configuration that does not say otherwise; the head has one output
    wrapper = RegularizedModel(model, [CAT(pooled_source="label_input")])
    assert bool(wrapper(**choice_batch("bert")).loss.isfinite())


@pytest.mark.parametrize("key", ["hype", "lnsr", "asa"])
def test_embeddings_in_place_of_tokens_give_the_same_loss(key: str) -> None:
    batch, found = choice_batch("bert"), []
    for embedded in (False, True):
        model: Any = answer_model("bert", "multiple_choice")
        given = dict(batch)
        if embedded:
            given["inputs_embeds"] = model.get_input_embeddings()(given.pop("input_ids")).detach()
        found.append(RegularizedModel(model, [built(key, "multiple_choice")])(**given).loss)
    torch.testing.assert_close(found[1], found[0], **EXACT)


# -- the trainer ------------------------------------------------------------------------------------------------------


class Texts(Dataset[dict[str, Tensor]]):
    """The rows of one batch, whatever its labels are called."""

    def __init__(self, batch: dict[str, Tensor]) -> None:
        self.batch = batch

    def __len__(self) -> int:
        return len(self.batch["input_ids"])

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        return {name: value[index] for name, value in self.batch.items()}


def as_transformers_has_it(family: str, task: AnswerTask) -> dict[str, Tensor]:
    """Eight rows of equal choices, or without padding, labelled under the names of transformers."""
    if task == "multiple_choice":
        batch = choice_batch(family)
        return {**batch, "labels": batch["labels"].argmax(dim=1)}
    batch = place_batch(family, padded=False)
    start, end = batch.pop("labels").T
    return {**batch, "start_positions": start, "end_positions": end}


def trained(kind: Any, folder: Path, family: str, task: AnswerTask, **given: Any) -> tuple[Any, Spy]:
    spy = Spy()
    model = answer_model(family, task, dropout=0.1, depth=2)
    settings = arguments(folder, max_steps=3, **given)
    rows = Texts(as_transformers_has_it(family, task))
    trainer = kind(model=model, args=settings, train_dataset=rows, callbacks=[spy])
    torch.manual_seed(5)
    trainer.train()
    return trainer, spy


@every_task
@every_family
def test_without_methods_training_is_that_of_the_stock_trainer(family: str, task: AnswerTask, tmp_path: Path) -> None:
    stock, theirs = trained(Trainer, tmp_path, family, task)
    regularized, ours = trained(RegularizedTrainer, tmp_path, family, task)
    assert len(ours.gradients) == 3
    for one, other in zip(ours.gradients, theirs.gradients, strict=True):
        assert_close_gradients(one, other)
    for name, value in stock.model.state_dict().items():
        torch.testing.assert_close(regularized.model.state_dict()[name], value, **EXACT)
    losses = [[line["loss"] for line in t.state.log_history if "loss" in line] for t in (stock, regularized)]
    assert losses[1] == pytest.approx(losses[0], **CLOSE)
    evaluated = [t.evaluate(Texts(as_transformers_has_it(family, task)))["eval_loss"] for t in (stock, regularized)]
    assert evaluated[1] == pytest.approx(evaluated[0], rel=SAME[torch.float32])


@every_task
def test_the_trainer_gives_accumulated_batches_the_gradient_of_one(task: AnswerTask, tmp_path: Path) -> None:
    found = []
    for rows, steps in ((8, 1), (2, 4)):
        spy = Spy()
        settings = arguments(
            tmp_path,
            per_device_train_batch_size=rows,
            gradient_accumulation_steps=steps,
            max_steps=1,
            remove_unused_columns=False,
        )
        batch = answer_batch("bert", task)
        trainer = RegularizedTrainer(
            model=answer_model("bert", task), args=settings, train_dataset=Texts(batch), callbacks=[spy]
        )
        trainer.train()
        found.append(spy.gradients[0])
    assert_close_gradients(*found)
