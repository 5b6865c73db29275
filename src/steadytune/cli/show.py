"""`steadytune methods`, `recipes` and `doctor`: what there is, and what can act here."""

from typing import Annotated, Any

import typer
import yaml

from steadytune.cli import options
from steadytune.cli.output import out, print_json, quiet_libraries, table

_WIDE = 110  # columns of a window that has room for a sentence in a table


def methods(
    key: Annotated[str | None, typer.Argument(help="A method, to read its card.", show_default=False)] = None,
    as_json: options.Json = False,
) -> int:
    """List the methods, or show the card of one.

    Example: `steadytune methods scl`
    """
    from steadytune.methods.cards import needs, read_card, read_cards

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
    columns = ["key", "place", "needs", "passes", "cost", "status", "what it is"]
    rows = [
        [
            card.front["name"],
            card.front["place"],
            needs(card.front),
            f"+{card.front['extra_forward']:g}, +{card.front['extra_backward']:g}",
            f"{card.front['measured_cost']:.2f} ({card.front['floor']:.2f})",
            card.front["status"],
            card.front["title"],
        ]
        for card in cards
    ]
    shown = len(columns) if out.width >= _WIDE else len(columns) - 1
    columns, rows = columns[:shown], [row[:shown] for row in rows]
    out.print(table(columns, rows))
    out.print(
        "needs: labels for its term, a site that not every family offers, a task with classes. passes: extra ones, "
        "forward and backward. cost: step time over plain fine-tuning at equal dropout, measured and (derived)."
    )
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
    """Say which sites a model offers, which methods can act on it, and what they do to one batch, here.

    Example: `steadytune doctor bundled`
    """
    from dataclasses import asdict

    from steadytune.encoders import SITES, SiteUnavailable, describe
    from steadytune.encoders.families import family_of
    from steadytune.training.diagnosis import diagnose, sample_batch
    from steadytune.training.loading import load_config, load_model, load_tokenizer, locate_model
    from steadytune.training.surroundings import hardware, versions

    quiet_libraries()
    source = locate_model(model)
    family_of(load_config(source))  # refuses other families before their weights are read
    batch, classes = sample_batch(load_tokenizer(source))
    network = load_model(source, num_labels=len(classes), problem_type="single_label_classification")
    parts = describe(network)
    sites = {}
    for site in SITES:
        try:
            parts.require(site, "doctor")
            sites[site] = "available"
        except SiteUnavailable as reason:
            sites[site] = str(reason).split(": ", 1)[-1]
    found = diagnose(network, batch)
    facts: dict[str, Any] = {
        "model": source.name,
        "family": parts.family.name,
        "layers": parts.depth,
        "dropout": parts.dropout,
        "sites": sites,
        "methods": {key: asdict(diagnosis) for key, diagnosis in found.items()},
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
    rows = [
        [key, diagnosis.verdict, *(_or_dash(value) for value in (diagnosis.gradient_change, diagnosis.step_time_ratio))]
        for key, diagnosis in found.items()
    ]
    out.print(table(["method", "here", "gradient change", "step time"], rows))
    out.print()
    effects = [
        [key, ", ".join(f"{name} {value:.3g}" for name, value in diagnosis.telemetry.items() if "_layer_" not in name)]
        for key, diagnosis in found.items()
        if diagnosis.telemetry
    ]
    out.print(table(["method", "what it did to one batch"], effects))
    out.print(
        f"One batch of {len(batch['labels'])} rows of `sample`, settings of the bundled recipe. gradient change: size "
        "of what the method adds to a plain gradient, in units of that; step time: over a plain step, in turn."
    )
    return 0


def _or_dash(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}"
