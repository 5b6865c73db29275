"""What a pre-training run begins with: refused before its texts are read, or kept until it ends."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import transformers

from steadytune.data import DataError
from steadytune.encoders.families import SiteUnavailable
from steadytune.methods.contract import MethodError
from steadytune.recipes import PretrainConfig
from steadytune.training import pretrain_inputs as module
from steadytune.training.folder import open_folder
from steadytune.training.loading import RunError
from steadytune.training.pretrain import pretrain
from steadytune.training.pretrain_inputs import PretrainInputs, pretrain_inputs
from toycorpus import pretraining_of, write_texts
from toyrun import write_model

pytestmark = pytest.mark.usefixtures("imports_stay_out_of_garbage_collection")


class Killed(BaseException):
    """Stands for a signal: nothing that handles exceptions may catch it."""


def stop(*_: Any, **__: Any) -> None:
    raise Killed


def inputs_of(config: PretrainConfig, output: Path) -> PretrainInputs:
    return pretrain_inputs(config, output, resumes=False)


def shape_of(folder: Path, **changed: Any) -> str:
    """The name of a new model of a BERT's shape."""
    folder.mkdir(exist_ok=True)
    shape = {"model_type": "bert", "hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 4}
    (folder / "config.json").write_text(json.dumps({**shape, "intermediate_size": 64, **changed}))
    return f"new:{folder / 'config.json'}"


# -- refused before the texts are read --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("recipe", "shape", "error", "words"),
    [
        ("plain", {"hidden_size": 33}, RunError, r"no masked language model can be made of the bert .*33"),
        ("scl", {}, MethodError, "scl"),
        ("mixout", {"gradient_checkpointing": True}, SiteUnavailable, "mixout"),
    ],
    ids=["shape", "method", "site"],
)
def test_what_the_model_cannot_do_is_said_before_any_text_is_read(
    recipe: str, shape: dict[str, Any], error: type[ValueError], words: str, tmp_path: Path
) -> None:
    (tmp_path / "texts.txt").write_bytes(b"not \xf6 UTF-8")
    run = {name: shape.pop(name) for name in ("gradient_checkpointing",) if name in shape}
    config = pretraining_of(tmp_path / "texts.txt", shape_of(tmp_path / "shape", **shape), recipe, **run)
    with pytest.raises(error, match=words) as caught:
        inputs_of(config, tmp_path / "run")
    assert "\n" not in str(caught.value) and not (tmp_path / "run").exists()


def test_texts_that_are_learned_from_are_not_measured_on(tmp_path: Path) -> None:
    texts = write_texts(tmp_path / "texts.txt")
    config = pretraining_of(texts, write_model(tmp_path / "encoder"), dev=texts)
    with pytest.raises(DataError, match=r"texts\.txt is both measured on and learned from"):
        inputs_of(config, tmp_path / "run")


# -- which head -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("saved_as", "new_head"),
    [("ElectraForPreTraining", True), ("ElectraForMaskedLM", False), ("BertForPreTraining", False)],
)
def test_a_discriminator_has_no_head_that_guesses_words(saved_as: str, new_head: bool, tmp_path: Path) -> None:
    encoder = write_model(tmp_path / "encoder")
    words = transformers.AutoConfig.from_pretrained(encoder).vocab_size
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
    kind = getattr(transformers, saved_as)
    kind(kind.config_class(vocab_size=words, max_position_embeddings=32, **sizes)).save_pretrained(encoder)
    ready = inputs_of(pretraining_of(write_texts(tmp_path / "texts.txt"), encoder), tmp_path / "run")
    assert ready.new_head is new_head


# -- what is said and kept --------------------------------------------------------------------------------------------


def test_how_texts_were_told_apart_is_noted_with_their_number(tmp_path: Path) -> None:
    encoder, texts = write_model(tmp_path / "encoder"), write_texts(tmp_path / "texts.txt", 60)
    assert inputs_of(pretraining_of(texts, encoder), tmp_path / "one").notes == [
        "train: 60 texts; text files hold one per line"
    ]
    lines = texts.read_text().splitlines()
    texts.write_text("\n".join([*lines[:30], "", *lines[30:]]))
    ready = inputs_of(pretraining_of(texts, encoder), tmp_path / "other")
    assert ready.notes == ["train: 2 texts; blank lines part those of text files"]
    assert ready.data["train"].texts == 2


def test_a_long_text_is_counted_once(tmp_path: Path) -> None:
    (tmp_path / "texts.txt").write_text("the film was good " * 12_000)
    ready = inputs_of(pretraining_of(tmp_path / "texts.txt", write_model(tmp_path / "encoder")), tmp_path / "run")
    assert ready.data["train"].texts == 1


def test_a_shape_that_changed_after_a_checkpoint_is_refused(tmp_path: Path) -> None:
    model, texts = shape_of(tmp_path / "shape"), write_texts(tmp_path / "texts.txt")
    config = pretraining_of(texts, model)
    before = inputs_of(config, tmp_path / "run").fingerprints["model"]
    shape_of(tmp_path / "shape", num_hidden_layers=2)
    with pytest.raises(RunError, match=r"^the model changed since the run in "):
        pretrain_inputs(config, tmp_path / "run", resumes=True)
    after = inputs_of(config, tmp_path / "other").fingerprints["model"]
    assert before.startswith("new ") and after.startswith("new ") and before != after


@pytest.mark.parametrize("moment", ["save_pretrain", "write_json", "write_tokens"])
def test_a_folder_is_that_of_its_run_wherever_it_was_killed(
    moment: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = pretraining_of(write_texts(tmp_path / "texts.txt"), write_model(tmp_path / "encoder"), steps=1)
    original: Callable[..., Any] = getattr(module, moment)

    def killed_after(*args: Any, **settings: Any) -> None:
        original(*args, **settings)
        raise Killed

    for instead in (stop, killed_after):
        with monkeypatch.context() as patched, pytest.raises(Killed):
            patched.setattr(module, moment, instead)
            inputs_of(config, tmp_path / "run")
        assert open_folder(tmp_path / "run", lambda file: True) is None
    assert pretrain(config, tmp_path / "run").status == "done"


def test_tokens_that_were_cut_off_are_written_anew(tmp_path: Path) -> None:
    config = pretraining_of(write_texts(tmp_path / "texts.txt"), write_model(tmp_path / "encoder"))
    tokens = tmp_path / "run" / "tokens" / "train.bin"
    inputs_of(config, tmp_path / "run")
    before = tokens.read_bytes()
    tokens.write_bytes(before[:100])
    inputs_of(config, tmp_path / "run")
    assert tokens.read_bytes() == before
