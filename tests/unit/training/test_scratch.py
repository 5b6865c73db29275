"""A model that begins with nothing: its shape from a word or a file, its vocabulary from the texts."""

import json
from pathlib import Path

import pytest
import torch
from transformers import AutoTokenizer

from steadytune.encoders import UnknownFamily
from steadytune.training.loading import RunError
from steadytune.training.scratch import learn_vocabulary, new_config, new_model, new_revision
from tiny import tiny_model
from tinylm import FAMILIES

TEXTS = ["The film was good.", "the book was better than the film", "films and books, books and films"] * 20


@pytest.mark.parametrize(("given", "heads"), [("new:4x256", 4), ("new:2x128", 2), ("new:3x96", 3), ("new:1x32", 1)])
def test_a_size_is_a_bert_with_heads_of_64_or_32(given: str, heads: int) -> None:
    config = new_config(given, 128)
    layers, width = map(int, given.removeprefix("new:").split("x"))
    assert (config.num_hidden_layers, config.hidden_size, config.intermediate_size) == (layers, width, 4 * width)
    assert (config.model_type, config.num_attention_heads) == ("bert", heads)


def test_a_new_model_reads_512_tokens_or_as_many_as_are_asked_for() -> None:
    assert [new_config("new:1x32", length).max_position_embeddings for length in (16, 1024)] == [512, 1024]


@pytest.mark.parametrize("family", FAMILIES)
def test_a_configuration_file_gives_the_shape_and_the_texts_the_vocabulary(family: str, tmp_path: Path) -> None:
    tiny_model(family, depth=1).config.save_pretrained(tmp_path)
    config = new_config(f"new:{tmp_path}", 16)
    tokenizer = learn_vocabulary(lambda: TEXTS, 60, config)
    model = new_model(config, {}, tokenizer)
    assert (model.config.model_type, model.config.vocab_size) == (family, len(tokenizer))
    assert model.config.pad_token_id == tokenizer.pad_token_id
    batch = tokenizer(["the film was good"], return_tensors="pt", return_token_type_ids=False)
    assert torch.isfinite(model(**batch).logits).all()


def test_a_file_that_is_no_configuration_is_refused(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(RunError, match="is no configuration that transformers reads") as caught:
        new_config(f"new:{tmp_path / 'config.json'}", 16)
    assert "\n" not in str(caught.value)


def test_a_family_that_is_not_supported_is_refused(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "gpt2"}')
    with pytest.raises(UnknownFamily):
        new_config(f"new:{tmp_path}", 16)


def test_a_shape_that_no_model_can_have_is_refused() -> None:
    config = new_config("new:1x32", 16)
    config.num_attention_heads = 5
    with pytest.raises(
        RunError, match=r"^no masked language model can be made of the bert that --model names \(.*32"
    ) as caught:
        new_model(config, {})
    assert "\n" not in str(caught.value)


def test_a_revision_is_that_of_the_shape_and_of_nothing_else(tmp_path: Path) -> None:
    def of(folder: str, **changed: object) -> str:
        tiny_model("bert", depth=1).config.save_pretrained(tmp_path / folder)
        file = tmp_path / folder / "config.json"
        file.write_text(json.dumps(json.loads(file.read_text()) | changed))
        return new_revision(new_config(f"new:{file}", 16))

    one = of("one")
    assert one.startswith("new ") and len(one) == len("new ") + 12
    assert of("other") == of("older", transformers_version="4.0.0") == one != of("third", num_hidden_layers=2)
    sizes = [
        new_revision(new_config(f"new:{size}", length)) for size, length in (("1x32", 16), ("1x64", 16), ("1x32", 600))
    ]
    assert len(set(sizes)) == 3


@pytest.mark.parametrize("size", [64, 65, 100])
def test_a_vocabulary_is_never_larger_than_it_may_be(size: int) -> None:
    many = ["".join(map(chr, range(0x4E00 + i, 0x4E00 + i + 40))) for i in range(0, 1200, 40)]
    assert len(learn_vocabulary(lambda: many, size, new_config("new:1x32", 16))) <= size


def test_a_vocabulary_holds_the_special_tokens_first_and_is_the_same_every_time() -> None:
    one, other = (learn_vocabulary(lambda: TEXTS, 60, new_config("new:1x32", 16)) for _ in range(2))
    assert one.convert_ids_to_tokens(range(5)) == ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    assert one.get_vocab() == other.get_vocab() and len(one) <= 60
    assert one.convert_ids_to_tokens(one("The FILM")["input_ids"]) == ["[CLS]", "the", "film", "[SEP]"]


def test_a_learned_tokenizer_is_the_same_after_saving(tmp_path: Path) -> None:
    learned = learn_vocabulary(lambda: TEXTS, 60, new_config("new:1x32", 16))
    learned.save_pretrained(tmp_path)
    loaded = AutoTokenizer.from_pretrained(tmp_path)
    assert loaded(TEXTS[:3])["input_ids"] == learned(TEXTS[:3])["input_ids"]
    assert loaded.mask_token_id == 4 and loaded.model_max_length == 512


def test_texts_without_a_word_give_no_vocabulary() -> None:
    with pytest.raises(RunError, match="hold no word"):
        learn_vocabulary(lambda: [" "], 60, new_config("new:1x32", 16))
