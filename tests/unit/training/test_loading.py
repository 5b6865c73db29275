"""Loading: a head is kept where its labels are the same ones, and new where they are not."""

from pathlib import Path

import pytest
import torch
from torch import Tensor
from transformers import AutoModel

from steadytune.tasks import Classification
from steadytune.training.loading import RunError, load_model, load_trained_model, locate_model
from tiny import tiny_model

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
