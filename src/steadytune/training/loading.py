"""Models and tokenizers from the bundled package, a folder or the hub, with errors that say what to do."""

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import transformers
from transformers import AutoConfig, AutoTokenizer

from steadytune.encoders.bundled import PACKAGE, bundled_encoder

Loaded = TypeVar("Loaded")
_HEADS = ("SequenceClassification", "TokenClassification", "MultipleChoice", "QuestionAnswering")


class RunError(ValueError):
    """A run cannot start, or cannot go on."""


@dataclass(frozen=True)
class ModelSource:
    """Where a model comes from.

    Attributes:
        given: as the user named it.
        place: what `from_pretrained` loads.
        name: the name to record.
    """

    given: str
    place: str
    name: str


def locate_model(given: str) -> ModelSource:
    """Find a model by its name.

    Args:
        given: "bundled", a local folder (of a model or of a run), or a hub name.
    Raises:
        RunError: a path that does not exist, or a folder without a model.
        BundledEncoderError: the bundled encoder is missing or changed.
    """
    if given == "bundled":
        return ModelSource(given, str(bundled_encoder()), PACKAGE.replace("_", "-"))
    path = Path(given)
    if (path / "model" / "config.json").is_file():
        path = path / "model"
    if path.is_dir():
        if not (path / "config.json").is_file():
            raise RunError(f"model folder {given} holds no config.json; name a folder of a model or of a finished run.")
        name = path.absolute().parent.name if path.name == "model" else path.name
        return ModelSource(given, str(path), name)
    if path.exists():
        raise RunError(f"model {given} is a file; name the folder of a model or of a finished run.")
    if given.startswith((".", "/", "~")) or given.count("/") > 1 or ("/" in given and path.parent.is_dir()):
        raise RunError(f"model folder {given} does not exist.")
    return ModelSource(given, given, given)


def revision(source: ModelSource, config: Any) -> str:
    """Which weights these are: the hub's commit, or a SHA-256 over the weight files of a folder.

    Args:
        source: where they lie.
        config: the loaded configuration.
    """
    folder = Path(source.place)
    if not folder.is_dir():
        return str(getattr(config, "_commit_hash", None) or "unknown")
    digest = hashlib.sha256()
    for path in sorted([*folder.glob("*.safetensors"), *folder.glob("*.bin")]):
        with path.open("rb") as file:
            digest.update(hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest()


def load_config(source: ModelSource) -> Any:
    """Its configuration.

    Args:
        source: where it lies.
    Raises:
        RunError: it cannot be read or fetched.
    """
    return _load(source, "configuration", lambda: AutoConfig.from_pretrained(source.place))


def load_tokenizer(source: ModelSource) -> Any:
    """Its tokenizer.

    Args:
        source: where it lies.
    Raises:
        RunError: it cannot be read or fetched.
    """
    return _load(source, "tokenizer", lambda: AutoTokenizer.from_pretrained(source.place))


def load_model(source: ModelSource, model_class: str = "AutoModelForSequenceClassification", **settings: Any) -> Any:
    """The model with a head for a task: that of the checkpoint if it is for this task and these labels, else a new one.

    Args:
        source: where it lies.
        model_class: of transformers.
        settings: configuration values; those that the configuration does not know are set on it afterwards.
    Raises:
        RunError: it cannot be read or fetched.
    """
    before = load_config(source)
    known = {name: value for name, value in settings.items() if hasattr(before, name)}
    loader = getattr(transformers, model_class)
    model = _load(
        source, "weights", lambda: loader.from_pretrained(source.place, ignore_mismatched_sizes=True, **known)
    )
    for name in settings.keys() - known.keys():
        setattr(model.config, name, settings[name])
    of_other_task = _head_of(before) not in ("", model_class.removeprefix("AutoModelFor"))
    if of_other_task or ("id2label" in settings and before.id2label != settings["id2label"]):
        fresh = type(model)(model.config)
        for name, part in fresh.named_children():
            if name != model.base_model_prefix:
                setattr(model, name, part)
        model.tie_weights()  # the new head may share the embeddings
    return model


def load_trained_model(source: ModelSource) -> Any:
    """The model with the head that its checkpoint holds.

    Args:
        source: where it lies.
    Raises:
        RunError: it cannot be read or fetched, or some of its weights are not in the checkpoint.
    """
    loader = getattr(transformers, _class_of(load_config(source)))
    model, found = _load(source, "weights", lambda: loader.from_pretrained(source.place, output_loading_info=True))
    if found["missing_keys"]:
        lacks = ", ".join(sorted(found["missing_keys"])[:3])
        raise RunError(f"model {source.given} has no trained head (it lacks {lacks}); train it first.")
    return model


def _class_of(config: Any) -> str:
    """The class of transformers that loads a checkpoint with the head that its configuration names."""
    return f"AutoModelFor{_head_of(config) or _HEADS[0]}"


def _head_of(config: Any) -> str:
    """The head of a checkpoint, as transformers calls it; "" for another one or none."""
    architecture = (getattr(config, "architectures", None) or [""])[0]
    return next((head for head in _HEADS if f"For{head}" in architecture), "")


def _load(source: ModelSource, what: str, load: Callable[[], Loaded]) -> Loaded:
    try:
        return load()
    except Exception as error:  # noqa: BLE001 - tokenizers raises Exception itself; the files are at fault
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".")
        if Path(source.place).is_dir():
            raise RunError(f"the {what} of model {source.given} cannot be read: {reason}.") from None
        raise RunError(
            f"the {what} of model {source.given!r} cannot be had: it is no local folder, and the hub gave none "
            f"({reason}); check the name and the connection, or use --model bundled."
        ) from None
