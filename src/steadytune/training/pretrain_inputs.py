"""What a pre-training run needs before its first step: texts as packed sequences, tokenizer, model."""

import copy
import shutil
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

import torch

from steadytune.data.corpus import Corpus, Piece, TextFile, open_corpus
from steadytune.data.packing import (
    Frame,
    Masking,
    PackedSequences,
    TokenFile,
    frame_of,
    open_tokens,
    sequences_in,
    stacked,
    write_tokens,
)
from steadytune.encoders.families import dropout_settings, longest_input
from steadytune.functional import keyed_seed
from steadytune.objective import RegularizedModel
from steadytune.recipes import PretrainConfig, save_pretrain
from steadytune.records import Texts, write_json
from steadytune.tasks import MaskedLM
from steadytune.training.folder import INPUTS_FILE, RUN_FILE, check_unchanged
from steadytune.training.loading import (
    ModelSource,
    RunError,
    load_config,
    load_model,
    load_tokenizer,
    locate_model,
    revision,
)
from steadytune.training.scratch import learn_vocabulary, new_config, new_model, new_revision

_HELD_OUT = 20  # one sequence in so many is kept apart where no texts to be measured on are named
_HAS_HEAD = ("ForMaskedLM", "BertForPreTraining", "AlbertForPreTraining")  # an ELECTRA discriminator has none


@dataclass(frozen=True)
class PretrainInputs:
    """Everything before the first step.

    Attributes:
        source: where the model came from; None for a new one.
        tokenizer: of the model.
        model: with a masked-LM head, at the recipe's dropout.
        new_head: the encoder has learned before and its head has not.
        train: sequences to learn from.
        dev: the fixed masked set.
        data: what both hold.
        notes: what was inferred.
        fingerprints: of texts and weights.
    """

    source: ModelSource | None
    tokenizer: Any
    model: Any
    new_head: bool
    train: PackedSequences
    dev: PackedSequences
    data: dict[str, Texts]
    notes: list[str]
    fingerprints: dict[str, Any]


def pretrain_inputs(config: PretrainConfig, output: Path, *, resumes: bool) -> PretrainInputs:
    """Read and tokenize the texts, and load or make the model.

    Args:
        config: the run.
        output: its folder, where tokens and a new tokenizer are kept until it ends.
        resumes: the run goes on from a checkpoint, so that nothing may have changed.
    Raises:
        RunError: the model cannot be had, the texts do not suffice, or something changed.
        DataError: the texts cannot be read.
        MethodError: a method cannot act here.
        SiteUnavailable: the model lacks a site that a method needs.
    """
    run, texts = config.run, config.texts
    corpus = open_corpus(texts.train, texts.dev, texts.column)
    source = None if config.is_new else locate_model(config.model)
    shape = new_config(config.model, run.max_length) if source is None else load_config(source)
    limit = longest_input(shape)
    if limit is not None and run.max_length > limit:
        raise RunError(f"run.max_length must be at most {limit} with model {config.model}; got {run.max_length}.")
    tokenizer = None if source is None else load_tokenizer(source)
    frame = None if tokenizer is None else frame_of(tokenizer)
    _check_model(config, shape)
    weights = new_revision(shape) if source is None else revision(source, shape)
    inputs = {"texts": corpus.fingerprints(), "model": weights}
    _keep_inputs(output, inputs, config, resumes=resumes)
    if tokenizer is None:
        tokenizer = _own_tokenizer(output / "tokenizer", corpus, config, shape)
        frame = frame_of(tokenizer)
    assert frame is not None
    model = _model(config, source, shape, tokenizer)
    files = {
        name: open_tokens(path) or write_tokens(_all_pieces(part), tokenizer, path)
        for name, part in (("train", corpus.train), ("dev", corpus.dev))
        if part and (path := output / "tokens" / f"{name}.bin")
    }
    train, dev, data = _packed(config, tokenizer, frame, files)
    notes = [*corpus.notes, *corpus.readings({name: file.texts for name, file in files.items()})]
    new_head = source is not None and not (getattr(shape, "architectures", None) or [""])[0].endswith(_HAS_HEAD)
    return PretrainInputs(source, tokenizer, model, new_head, train, dev, data, notes, inputs)


def _check_model(config: PretrainConfig, shape: Any) -> None:
    """Before any text is read: a model of this shape can be made, and the methods can act on it."""
    model = _model(config, None, copy.deepcopy(shape), None)
    RegularizedModel(model, config.recipe.build(), task=MaskedLM()).close()


def _model(config: PretrainConfig, source: ModelSource | None, shape: Any, tokenizer: Any) -> Any:
    """With a masked-LM head, at the recipe's dropout; of random weights without a source."""
    torch.manual_seed(keyed_seed(config.seed, "head"))
    dropout = config.recipe.dropout
    settings = dropout_settings(shape, hidden=dropout.hidden, attention=dropout.attention)
    if source is None:
        model = new_model(shape, settings, tokenizer)
    else:
        model = load_model(source, MaskedLM.model_class, **settings)
    if config.run.gradient_checkpointing:
        model.activation_checkpointing_enable()
    return model


def _keep_inputs(output: Path, inputs: dict[str, Any], config: PretrainConfig, *, resumes: bool) -> None:
    """Write down what the run begins with; what was made of other texts before its first checkpoint is removed."""
    if resumes:
        check_unchanged(output, inputs)
        return
    output.mkdir(parents=True, exist_ok=True)
    save_pretrain(config, output / RUN_FILE)  # first, as it says whose folder this is
    try:
        check_unchanged(output, inputs)
    except RunError:
        discard_inputs(output)
    write_json(output / INPUTS_FILE, inputs)


def _all_pieces(files: Iterable[TextFile]) -> Iterator[Piece]:
    return chain.from_iterable(file.pieces() for file in files)


def _own_tokenizer(folder: Path, corpus: Corpus, config: PretrainConfig, shape: Any) -> Any:
    """The tokenizer of a new model: learned from the texts, or by this run before it was interrupted."""
    if not folder.is_dir():
        learned = learn_vocabulary(
            lambda: (piece.text for piece in _all_pieces(corpus.train)), config.run.vocabulary, shape
        )
        aside = folder.with_name(f".{folder.name}")
        shutil.rmtree(aside, ignore_errors=True)
        learned.save_pretrained(aside)
        aside.rename(folder)
    return load_tokenizer(ModelSource(config.model, str(folder), config.model))


def _packed(
    config: PretrainConfig, tokenizer: Any, frame: Frame, files: dict[str, TokenFile]
) -> tuple[PackedSequences, PackedSequences, dict[str, Texts]]:
    """Sequences to learn from and the fixed masked set, and what they hold."""
    run = config.run
    train, dev = files["train"], files.get("dev")
    there = sequences_in(train, frame, run.max_length)
    if there < (1 if dev else 2):
        raise RunError(
            f"the texts give {train.tokens} tokens, which fill {there} sequences of --max-length {run.max_length}; "
            f"give more text or shorter sequences{'' if dev else ', or texts to be measured on (--dev)'}."
        )
    if dev is not None:
        apart = sequences_in(dev, frame, run.max_length)
        if apart < 1:
            raise RunError(
                f"the texts to be measured on give {dev.tokens} tokens, fewer than one sequence of --max-length "
                f"{run.max_length}; give more."
            )
        count = min(run.eval_rows, apart)
        chosen = [place * apart // count for place in range(count)]  # from all over the texts
    else:
        count = min(run.eval_rows, max(1, there // _HELD_OUT))
        there -= count
        chosen = list(range(there, there + count))
    masking = Masking.of(tokenizer, run.mask_fraction, fixed_count=run.fixed_count)
    sequences = PackedSequences(train, frame, run.max_length, masking, range(there), (config.seed, "masks"))
    measured = PackedSequences(dev or train, frame, run.max_length, masking, chosen, ("masks of the fixed set",))
    places = int((stacked([measured[row] for row in range(count)])["labels"] != -100).sum())
    if not places:
        raise RunError("not one place of the texts to be measured on is masked; give more text.")
    held = dev and Texts(texts=dev.texts, tokens=dev.tokens, sequences=count, masked_places=places)
    data = {
        "train": Texts(texts=train.texts, tokens=train.tokens, sequences=there),
        "dev": held or Texts(sequences=count, masked_places=places),
    }
    return sequences, measured, data


def discard_inputs(output: Path) -> None:
    """Remove what was made of the texts.

    Args:
        output: folder of the run.
    """
    for folder in ("tokens", "tokenizer"):
        shutil.rmtree(output / folder, ignore_errors=True)
