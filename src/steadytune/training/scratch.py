"""A model that begins with nothing: its shape, and a vocabulary learned from the texts."""

import hashlib
import json
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, trainers
from transformers import AutoConfig, AutoModelForMaskedLM, BertConfig, BertTokenizer

from steadytune.encoders.families import family_of, longest_input
from steadytune.recipes.pretraining import NEW_MODEL
from steadytune.training.loading import RunError

_SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
_CHARACTERS = 50_000_000  # of the texts from which a vocabulary is learned; bounds time and memory
_LETTERS = 1000
_POSITIONS = 512
_HEAD_SIZES = (64, 32)


def new_config(given: str, max_length: int) -> Any:
    """The shape of a new model.

    Args:
        given: "new:LAYERSxWIDTH" for a BERT of that size, with heads of 64 (or 32) and a feed-forward block of four
            times the width; or "new:" and the path of a `config.json` or of its folder.
        max_length: tokens that it must be able to read.
    Raises:
        RunError: it is no shape.
        UnknownFamily: of a configuration file.
    """
    shape = given.removeprefix(NEW_MODEL)
    if (size := re.fullmatch(r"(\d+)x(\d+)", shape)) is not None:
        layers, width = int(size[1]), int(size[2])
        head = next((head for head in _HEAD_SIZES if width % head == 0), None)
        if layers < 1 or width < 1 or head is None:
            raise RunError(f"--model new:LAYERSxWIDTH needs a layer and a width that 32 divides; got {given}.")
        return BertConfig(
            hidden_size=width,
            num_hidden_layers=layers,
            num_attention_heads=width // head,
            intermediate_size=4 * width,
            max_position_embeddings=max(_POSITIONS, max_length),
        )
    path = Path(shape).expanduser()
    file = path / "config.json" if path.is_dir() else path
    if not file.is_file():
        raise RunError(f"--model {given} names no shape; give new:LAYERSxWIDTH (new:4x256) or new:PATH/config.json.")
    try:
        config = AutoConfig.from_pretrained(file)
    except Exception as error:  # noqa: BLE001 - the libraries raise whatever the file makes them raise
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".")
        raise RunError(f"{file} is no configuration that transformers reads: {reason}.") from None
    family_of(config)
    return config


def new_revision(config: Any) -> str:
    """Which shape this is: "new" and the beginning of the SHA-256 of its JSON, without the version that wrote it.

    Args:
        config: as `new_config` gives it.
    """
    shape = {name: value for name, value in config.to_diff_dict().items() if name != "transformers_version"}
    return f"new {hashlib.sha256(json.dumps(shape, sort_keys=True).encode()).hexdigest()[:12]}"


def learn_vocabulary(texts: Callable[[], Iterable[str]], size: int, config: Any) -> Any:
    """A lower-casing WordPiece tokenizer for a new model; the same texts give the same one.

    Args:
        texts: begins to read them; the words come from the first 50 million characters.
        size: most tokens.
        config: of the model, for the length of its texts.
    Raises:
        RunError: the texts hold no word.
    """
    learner = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    learner.normalizer = normalizers.BertNormalizer(lowercase=True)
    learner.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    seen: Counter[str] = Counter()
    for text in _beginning(texts()):
        seen.update(learner.normalizer.normalize_str(text))
    letters = [letter for letter in seen if not letter.isspace()]
    if not letters:
        raise RunError("the texts hold no word to learn a vocabulary from.")
    most = min(_LETTERS, (size - len(_SPECIAL)) // 2)  # each stands at the beginning of words and inside
    letters = sorted(sorted(letters, key=lambda letter: (-seen[letter], letter))[:most])
    trainer = trainers.WordPieceTrainer(
        vocab_size=size,
        # the library numbers letters inside words as it meets them, in an order that is another in every process
        special_tokens=[*_SPECIAL, *letters, *(f"##{letter}" for letter in letters)],
        initial_alphabet=letters,
        limit_alphabet=len(letters),
        show_progress=False,
    )
    learner.train_from_iterator(_beginning(texts()), trainer)
    in_order = dict(sorted(learner.get_vocab().items(), key=lambda item: item[1]))
    return BertTokenizer(vocab=in_order, model_max_length=longest_input(config) or _POSITIONS)


def new_model(config: Any, settings: Mapping[str, float], tokenizer: Any = None) -> Any:
    """A model of random weights with a masked-LM head.

    Args:
        config: its shape.
        settings: configuration values to change, as those of dropout.
        tokenizer: gives it its vocabulary and special tokens; None leaves those of the shape.
    Raises:
        RunError: no model can have this shape.
    """
    special = {} if tokenizer is None else _special_tokens(tokenizer)
    for name, value in {**special, **settings}.items():
        if hasattr(config, name):
            setattr(config, name, value)
    loader: Any = AutoModelForMaskedLM  # untyped
    try:
        return loader.from_config(config)
    except Exception as error:  # noqa: BLE001 - the libraries raise whatever the shape makes them raise
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".")
        raise RunError(
            f"no masked language model can be made of the {config.model_type} that --model names ({reason}); mend its "
            "config.json."
        ) from None


def _special_tokens(tokenizer: Any) -> dict[str, int]:
    return {
        "vocab_size": len(tokenizer),
        "pad_token_id": tokenizer.pad_token_id,
        "bos_token_id": tokenizer.cls_token_id,
        "eos_token_id": tokenizer.sep_token_id,
        "cls_token_id": tokenizer.cls_token_id,
        "sep_token_id": tokenizer.sep_token_id,
        "unk_token_id": tokenizer.unk_token_id,
        "mask_token_id": tokenizer.mask_token_id,
    }


def _beginning(texts: Iterable[str]) -> Iterator[str]:
    left = _CHARACTERS
    for text in texts:
        yield text
        left -= len(text)
        if left <= 0:
            return
