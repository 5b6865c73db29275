"""`steadytune methods`, `recipes` and `doctor`: what there is, and what can act here."""

from typing import Annotated, Any

import typer
import yaml

from steadytune.cli import options
from steadytune.cli.output import out, print_json, quiet_libraries, table


def methods(
    key: Annotated[str | None, typer.Argument(help="A method, to read its card.", show_default=False)] = None,
    as_json: options.Json = False,
) -> int:
    """List the methods, or show the card of one.

    Example: `steadytune methods scl`
    """
    from steadytune.methods.cards import read_card, read_cards

    if key is not None:
        card = read_card(key)
        if as_json:
            print_json(card.front)
        else:
            out.print(card.text, markup=False, soft_wrap=True)
        return 0
    cards = read_cards()
    if as_json:
        print_json([card.front for card in cards])
        return 0
    columns = ["key", "title", "place", "sites", "labels", "forward", "backward", "cost", "status"]
    rows = [
        [
            card.front["name"],
            card.front["title"],
            card.front["place"],
            ", ".join(card.front["sites"]) or "none",
            "yes" if card.front["needs_labels"] else "no",
            f"+{card.front['extra_forward']:g}",
            f"+{card.front['extra_backward']:g}",
            f"{card.front['measured_cost']:.2f}",
            card.front["status"],
        ]
        for card in cards
    ]
    out.print(table(columns, rows))
    out.print("forward, backward: extra passes; cost: measured step time over plain fine-tuning at equal dropout.")
    return 0


def recipes(
    name: Annotated[str | None, typer.Argument(help="A recipe or a stack, to read it.", show_default=False)] = None,
    as_json: options.Json = False,
) -> int:
    """List the recipes, or show one with the origin of every value.

    Example: `steadytune recipes scl+hype`
    """
    from steadytune.recipes import bundled_recipes, load_recipe

    if name is not None:
        recipe = load_recipe(name).model_dump(mode="json")
        if as_json:
            print_json(recipe)
        else:
            out.print(
                yaml.safe_dump(recipe, sort_keys=False, allow_unicode=True).rstrip(), markup=False, soft_wrap=True
            )
        return 0
    found = list(bundled_recipes())
    if as_json:
        print_json([recipe.model_dump(mode="json") for recipe in found])
        return 0
    out.print(table(["recipe", "what it is"], [[recipe.name, recipe.title] for recipe in found]))
    return 0


def doctor(
    model: Annotated[str, typer.Argument(help="`bundled`, a local folder, or a name on the hub.")] = "bundled",
    as_json: options.Json = False,
) -> int:
    """Say which sites a model offers and which methods can act on it, here.

    Example: `steadytune doctor bundled`
    """
    from steadytune.encoders import SITES, SiteUnavailable, describe
    from steadytune.encoders.families import family_of
    from steadytune.training.loading import load_config, load_model, locate_model
    from steadytune.training.surroundings import hardware, versions

    quiet_libraries()
    source = locate_model(model)
    config = load_config(source)
    family_of(config)  # refuses other families before their weights are read
    classes = max(2, getattr(config, "num_labels", 2))
    network = load_model(source, num_labels=classes, problem_type="single_label_classification")
    parts = describe(network)
    sites = {}
    for site in SITES:
        try:
            parts.require(site, "doctor")
            sites[site] = "available"
        except SiteUnavailable as reason:
            sites[site] = str(reason).split(": ", 1)[-1]
    verdicts = _verdicts(network)
    facts: dict[str, Any] = {
        "model": source.name,
        "family": parts.family.name,
        "layers": parts.depth,
        "dropout": parts.dropout,
        "sites": sites,
        "methods": verdicts,
        "versions": versions(),
        "hardware": hardware(),
    }
    if as_json:
        print_json(facts)
        return 0
    dropout = ", ".join(f"{kind} {rate:g}" for kind, rate in parts.dropout.items())
    out.print(f"{source.name}: {parts.family.name}, {parts.depth} layers; dropout {dropout}", markup=False)
    out.print(table(["site", "here"], list(sites.items())))
    out.print()
    out.print(table(["method", "here"], list(verdicts.items())))
    return 0


def _verdicts(network: Any) -> dict[str, str]:
    """For each method with a classification and a regression task: can act, or why not."""
    from steadytune.encoders import SiteUnavailable
    from steadytune.methods import METHODS, MethodError, method_class
    from steadytune.objective import RegularizedModel
    from steadytune.tasks import Regression, Task

    found = {}
    tasks: list[Task | None] = [None, Regression()]
    for key in METHODS:
        answers = []
        for task in tasks:
            try:
                RegularizedModel(network, [method_class(key)()], task=task).close()
                answers.append("")
            except (MethodError, SiteUnavailable) as reason:
                answers.append(str(reason))
        if not any(answers):
            found[key] = "can act"
        elif not answers[0]:
            found[key] = f"can act on classification; {answers[1]}"
        else:
            found[key] = answers[0]
    return found
