"""A recipe: which methods, with which settings, at which dropout, and where every value comes from."""

import difflib
import re
from collections.abc import Callable, Iterator
from importlib.resources import files
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_serializer

from steadytune.methods import METHODS, Method, method_class

_HERE = files("steadytune.recipes")
_FOLDERS = ((_HERE, ""), (_HERE / "paper", "paper/"), (_HERE / "pretrain", "pretrain/"))
Model = TypeVar("Model", bound=BaseModel)


class RecipeError(ValueError):
    """A recipe or a run file cannot be read, or its parts contradict each other."""


class Dropout(BaseModel):
    """Dropout of the encoder; null leaves the model's own value.

    Attributes:
        hidden: probability on embeddings, sub-blocks and the classification head.
        attention: probability on attention weights.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    hidden: float | None = Field(None, ge=0, lt=1)
    attention: float | None = Field(None, ge=0, lt=1)


class Recipe(BaseModel):
    """What is tried.

    Attributes:
        name: its name; stacks are written "scl+hype".
        title: one line.
        methods: settings by method key, in the order of application.
        dropout: what it proposes for the encoder.
        longer: factor of the optimizer steps of a run, as in a baseline that trains longer.
        model: what it starts from, a local folder or a hub name, so that a study can hold checkpoints against each
            other; null for the model of the run.
        origin: where each value comes from, by "key.setting".
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str
    title: str = ""
    methods: dict[str, dict[str, Any]] = {}
    dropout: Dropout = Dropout()
    longer: float = Field(1.0, ge=1, allow_inf_nan=False)
    model: str | None = Field(None, min_length=1)
    origin: dict[str, str] = {}

    @model_serializer(mode="wrap")
    def _without_null_model(self, dump: Callable[[Any], Any]) -> dict[str, Any]:
        """Where a recipe names no model, run ids are those of before it could."""
        return without_null(dump(self), "model")

    def build(self) -> tuple[Method, ...]:
        """The methods.

        Raises:
            RecipeError: an unknown method.
            MethodError: an unknown setting or a value out of range.
        """
        return tuple(_class(key).from_settings(settings) for key, settings in self.methods.items())

    def with_setting(self, key: str, name: str, value: Any) -> "Recipe":
        """This recipe with one setting changed.

        Args:
            key: a method of the recipe, or "dropout".
            name: the setting.
            value: its new value.
        Raises:
            RecipeError: the recipe has no such method, or dropout no such setting.
        """
        origin = {**self.origin, f"{key}.{name}": "given by the user"}
        if key == "dropout":
            dropout = validated(
                Dropout, {**self.dropout.model_dump(), name: value}, "", path=lambda _: f"dropout.{name}"
            )
            return self.model_copy(update={"dropout": dropout, "origin": origin})
        if key not in self.methods:
            have = ", ".join([*self.methods, "dropout", "run"])
            raise RecipeError(f"recipe {self.name!r} has no part {key!r} to set; its parts are {have}.")
        methods = {**self.methods, key: {**self.methods[key], name: value}}
        return self.model_copy(update={"methods": methods, "origin": origin})


def without_null(values: dict[str, Any], name: str) -> dict[str, Any]:
    """Settings without a later one that is null: run ids hash every value, and so stay those of before there was one.

    Args:
        values: by name.
        name: of the setting.
    """
    return {key: value for key, value in values.items() if key != name or value is not None}


def bundled_recipes() -> Iterator[Recipe]:
    """The bundled recipes, the papers' own under "paper/", those for pre-training under "pretrain/"."""
    for folder, prefix in _FOLDERS:
        for entry in sorted(folder.iterdir(), key=lambda item: item.name):
            if entry.name.endswith(".yaml"):
                yield load_recipe(prefix + entry.name.removesuffix(".yaml"))


def load_recipe(name: str) -> Recipe:
    """A bundled recipe, a YAML file, or a stack of them joined with "+".

    Args:
        name: "scl", "scl+hype", "paper/scl" or "my.yaml".
    Raises:
        RecipeError: no such recipe, an unreadable file, or two parts that set one value differently.
    """
    parts = [_load_part(part.strip()) for part in name.split("+")]
    whole = parts[0]
    for part in parts[1:]:
        whole = _stack(whole, part)
    whole.build()
    return whole


def _load_part(name: str) -> Recipe:
    if name.endswith((".yaml", ".yml")):
        path = Path(name)
        if not path.is_file():
            raise RecipeError(f"recipe file {name} does not exist.")
        text = read_text(path)
    else:
        entry = _HERE / f"{name}.yaml"
        if not name or not entry.is_file():
            names = [
                prefix + item.name.removesuffix(".yaml")
                for folder, prefix in _FOLDERS
                for item in folder.iterdir()
                if item.name.endswith(".yaml")
            ]
            near = difflib.get_close_matches(name, names, n=1)
            hint = f"did you mean {near[0]!r}?" if near else f"bundled are {', '.join(sorted(names))}."
            raise RecipeError(f"unknown recipe {name!r}; {hint}")
        text = entry.read_text(encoding="utf-8")
    recipe = validated(Recipe, read_yaml(text, name), f"recipe {name}")
    recipe.build()
    return recipe


def _stack(first: Recipe, second: Recipe) -> Recipe:
    dropout = {}
    for name in Dropout.model_fields:
        a, b = getattr(first.dropout, name), getattr(second.dropout, name)
        if a is not None and b is not None and a != b:
            raise RecipeError(
                f"recipes {first.name!r} and {second.name!r} set dropout.{name} differently: {a:g} and {b:g}."
            )
        dropout[name] = b if a is None else a
    for key in first.methods.keys() & second.methods.keys():
        raise RecipeError(f"recipes {first.name!r} and {second.name!r} both set the method {key!r}; name it once.")
    factors = {recipe.longer for recipe in (first, second)} - {1.0}
    if len(factors) > 1:
        raise RecipeError(
            f"recipes {first.name!r} and {second.name!r} set longer differently: {first.longer:g} and "
            f"{second.longer:g}."
        )
    models = {recipe.model for recipe in (first, second)} - {None}
    if len(models) > 1:
        raise RecipeError(
            f"recipes {first.name!r} and {second.name!r} start from different models: {first.model} and {second.model}."
        )
    return Recipe(
        name=f"{first.name}+{second.name}",
        title=f"{first.title}; {second.title}",
        methods={**first.methods, **second.methods},
        dropout=Dropout(**dropout),
        longer=max(first.longer, second.longer),
        model=first.model or second.model,
        origin={**first.origin, **second.origin},
    )


def _class(key: str) -> type[Method]:
    try:
        return method_class(key)
    except KeyError:
        near = difflib.get_close_matches(key, METHODS, n=1)
        hint = f"did you mean {near[0]!r}?" if near else f"methods are {', '.join(METHODS)}."
        raise RecipeError(f"unknown method {key!r}; {hint}") from None


def read_text(path: Path) -> str:
    """The text of a file.

    Args:
        path: a file that exists.
    Raises:
        RecipeError: it is not UTF-8.
    """
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise RecipeError(f"{path} is not UTF-8 (byte {error.start}); save it as UTF-8.") from None


class _Loader(yaml.SafeLoader):
    """YAML as people write it: 1e-5 is a number, as in YAML 1.2."""


_Loader.yaml_implicit_resolvers = {key: list(value) for key, value in yaml.SafeLoader.yaml_implicit_resolvers.items()}
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"^[-+]?(\d+\.?\d*|\.\d+)[eE][-+]?\d+$"), list("-+.0123456789")
)


def parse_yaml(text: str) -> Any:
    """A YAML value.

    Args:
        text: its text.
    Raises:
        yaml.YAMLError: it is not YAML.
    """
    return yaml.load(text, Loader=_Loader)


def read_yaml(text: str, where: str) -> dict[str, Any]:
    """A YAML mapping.

    Args:
        text: its text.
        where: for the message.
    Raises:
        RecipeError: it is not YAML, or not a mapping.
    """
    try:
        value = parse_yaml(text)
    except (yaml.YAMLError, ValueError, RecursionError) as error:  # a date that does not exist is a ValueError
        mark = getattr(error, "problem_mark", None)
        line = f", line {mark.line + 1}" if mark is not None else ""
        raise RecipeError(f"{where}{line} is not valid YAML: {getattr(error, 'problem', 'unreadable')}.") from None
    if not isinstance(value, dict):
        raise RecipeError(f"{where} must be a YAML mapping; got {type(value).__name__}.")
    return value


def validated(
    model: type[Model], values: dict[str, Any], where: str, *, path: Callable[[tuple[str, ...]], str] = ".".join
) -> Model:
    """A model of these values.

    Args:
        model: its class.
        values: by name.
        where: for the message; empty if the path says it all.
        path: how the message names the place of a value.
    Raises:
        RecipeError: a value is missing, unknown or out of range.
    """
    try:
        return model.model_validate(values)
    except ValidationError as error:
        problem = error.errors()[0]
    place = tuple(str(part) for part in problem["loc"])
    raise RecipeError(f"{where}: " * bool(where) + _sentence(model, problem, place, path(place) if place else ""))


def _sentence(model: type[BaseModel], problem: Any, place: tuple[str, ...], name: str) -> str:
    """What is wrong with one value: its path, what is allowed, what came."""
    if problem["type"] == "extra_forbidden":
        known = list(_at(model, place[:-1]).model_fields)
        near = difflib.get_close_matches(place[-1], known, n=1)
        hint = f"did you mean {near[0]!r}?" if near else f"entries are {', '.join(known)}."
        return f"unknown entry {name}; {hint}"
    if problem["type"] == "missing":
        return f"{name} is missing; add it."
    if problem["type"] == "value_error":  # raised by a validator, already a sentence
        return str(problem["ctx"]["error"])
    allowed = problem["msg"].removeprefix("Input should be ").split(", unable")[0]
    return f"{name} must be {allowed}; got {problem['input']!r:.80}."


def _at(model: type[BaseModel], place: tuple[str, ...]) -> type[BaseModel]:
    """The model that lies at a path of a model."""
    for name in place:
        found = model.model_fields[name].annotation
        assert isinstance(found, type) and issubclass(found, BaseModel)  # only these forbid entries
        model = found
    return model
