"""Loading: a head is kept where its labels are the same ones, and new where they are not."""

from pathlib import Path

import pytest
import torch
from torch import Tensor
from transformers import AutoModel

from steadytune.tasks import Classification, MultipleChoice, QuestionAnswering, Task, infer_task
from steadytune.training.loading import RunError, load_model, load_trained_model, locate_model
from tiny import tiny_model
from tinylm import FAMILIES as HAVE_A_MASKED_HEAD

NAMES = ("bad", "fair", "good")


def saved(folder: Path, family: str = "bert") -> dict[str, Tensor]:
    """A checkpoint with these three labels; its weights."""
    model = tiny_model(family, num_labels=3, depth=1)
    model.config.id2label = dict(enumerate(NAMES))
    model.config.label2id = {name: index for index, name in enumerate(NAMES)}
    model.save_pretrained(folder)  # type: ignore[operator]
    return model.state_dict()


def loaded(folder: Path, names: tuple[str, ...]) -> dict[str, Tensor]:
    torch.manual_seed(0)
    model = load_model(locate_model(str(folder)), **Classification(names).head_config())
    weights: dict[str, Tensor] = model.state_dict()
    return weights


HEADS = {"bert": "classifier.weight", "roberta": "classifier.dense.weight", "distilbert": "pre_classifier.weight"}


@pytest.mark.parametrize("family", HEADS)
def test_a_head_of_the_same_labels_is_kept(family: str, tmp_path: Path) -> None:
    before, after = saved(tmp_path, family), loaded(tmp_path, NAMES)
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)


@pytest.mark.parametrize("names", [("yes", "no", "maybe"), ("fair", "bad", "good")], ids=["others", "other order"])
@pytest.mark.parametrize("family", HEADS)
def test_a_head_of_other_labels_is_replaced(family: str, names: tuple[str, ...], tmp_path: Path) -> None:
    before, after = saved(tmp_path, family), loaded(tmp_path, names)
    assert not torch.equal(before[HEADS[family]], after[HEADS[family]])


@pytest.mark.parametrize("family", HEADS)
def test_the_encoder_below_a_replaced_head_is_kept(family: str, tmp_path: Path) -> None:
    before, after = saved(tmp_path, family), loaded(tmp_path, ("yes", "no", "maybe"))
    encoder = [name for name in before if name.startswith(f"{family}.")]
    assert encoder and all(torch.equal(before[name], after[name]) for name in encoder)


def test_a_replaced_head_is_drawn_from_the_main_stream(tmp_path: Path) -> None:
    saved(tmp_path)
    one, other = (loaded(tmp_path, ("yes", "no", "maybe")) for _ in range(2))
    assert torch.equal(one["classifier.weight"], other["classifier.weight"])


def test_a_head_of_another_size_is_new(tmp_path: Path) -> None:
    saved(tmp_path)
    assert loaded(tmp_path, ("no", "yes"))["classifier.weight"].shape == (2, 16)


def test_a_model_without_a_trained_head_cannot_predict(tmp_path: Path) -> None:
    AutoModel.from_config(tiny_model("bert", depth=1).config).save_pretrained(tmp_path)
    with pytest.raises(RunError, match=r"has no trained head \(it lacks classifier\.bias, classifier\."):
        load_trained_model(locate_model(str(tmp_path)))


@pytest.mark.parametrize(
    ("family", "outputs", "task"),
    [
        pytest.param("bert", 1, MultipleChoice(), id="of scores, for choices"),
        pytest.param("modernbert", 2, QuestionAnswering(), id="of two classes, for the ends of answers"),
    ],
)
def test_a_head_of_the_same_size_and_name_for_another_task_is_replaced(
    family: str, outputs: int, task: Task, tmp_path: Path
) -> None:
    before = tiny_model(family, num_labels=outputs, depth=1)
    before.save_pretrained(tmp_path)  # type: ignore[operator]
    after = load_model(locate_model(str(tmp_path)), task.model_class, **task.head_config()).state_dict()
    assert before.state_dict()["classifier.weight"].shape == after["classifier.weight"].shape
    assert not torch.equal(before.state_dict()["classifier.weight"], after["classifier.weight"])


@pytest.mark.parametrize("task", [MultipleChoice(), QuestionAnswering(allow_empty=True)])
def test_a_head_for_answers_is_kept_for_the_same_task(task: Task, tmp_path: Path) -> None:
    load_model(locate_model(str(_base(tmp_path))), task.model_class, **task.head_config()).save_pretrained(tmp_path)
    one, other = (
        load_model(locate_model(str(tmp_path)), task.model_class, **task.head_config()).state_dict() for _ in range(2)
    )
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_whether_there_may_be_no_answer_is_read_from_a_trained_model(tmp_path: Path) -> None:
    for allow_empty in (True, False):
        task = QuestionAnswering(allow_empty)
        source = locate_model(str(_base(tmp_path)))
        load_model(source, task.model_class, **task.head_config()).save_pretrained(tmp_path / "trained")
        found = infer_task(load_trained_model(locate_model(str(tmp_path / "trained"))))
        assert isinstance(found, QuestionAnswering) and found.allow_empty is allow_empty


def test_a_model_that_may_say_nothing_unlearns_it_on_rows_that_all_have_answers(tmp_path: Path) -> None:
    for allow_empty in (True, False):
        task = QuestionAnswering(allow_empty)
        model = load_model(locate_model(str(_base(tmp_path, allow_empty))), task.model_class, **task.head_config())
        model.save_pretrained(tmp_path)
    assert model.config.allow_empty_answer is False


def _base(folder: Path, fresh: bool = True) -> Path:
    """A checkpoint without a head."""
    if fresh:
        AutoModel.from_config(tiny_model("bert", depth=1).config).save_pretrained(folder)
    return folder


@pytest.mark.parametrize("family", HAVE_A_MASKED_HEAD)
def test_a_new_head_that_guesses_words_shares_the_embeddings_of_its_own_model(family: str, tmp_path: Path) -> None:
    saved(tmp_path, family)
    model = load_model(locate_model(str(tmp_path)), "AutoModelForMaskedLM")
    assert model.get_output_embeddings().weight is model.get_input_embeddings().weight
    assert torch.equal(model.get_input_embeddings().weight, model.base_model.get_input_embeddings().weight)
