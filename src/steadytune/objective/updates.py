"""Around the optimizer: parameter groups as the methods want them, and the methods' part in every optimizer step."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from steadytune.functional import keyed_generator
from steadytune.methods.contract import Context, Method, MethodError, ParameterRule, Update

Groups = list[dict[str, Any]]
_USUAL = ParameterRule()


def rules_of(methods: Sequence[Method], context: Context) -> dict[str, ParameterRule]:
    """The rules of all methods by name of the parameter; their learning rates multiply.

    Args:
        methods: the active methods.
        context: what they look at.
    Raises:
        MethodError: two want different weight decay for one parameter.
    """
    rules: dict[str, ParameterRule] = {}
    owners: dict[str, str] = {}
    for method in methods:
        for name, rule in method.parameter_rules(context).items():
            known = rules.get(name, _USUAL)
            decays = {decay for decay in (known.weight_decay, rule.weight_decay) if decay is not None}
            if len(decays) > 1:
                raise MethodError(
                    f"{owners[name]} and {method.key} want different weight decay for {name}; leave one of them out."
                )
            if rule.weight_decay is not None:
                owners[name] = method.key
            scale = known.learning_rate_scale * rule.learning_rate_scale
            rules[name] = ParameterRule(scale, next(iter(decays), None))
    return rules


def by_rule(groups: Groups, names: Mapping[int, str], rules: Mapping[str, ParameterRule]) -> Groups:
    """Parameter groups of an optimizer, parted so that every parameter has the learning rate and decay of its rule.

    Args:
        groups: with "params", "lr" and "weight_decay".
        names: of the encoder's parameters, by `id`.
        rules: by name.
    """
    parted: Groups = []
    for group in groups:
        members: dict[ParameterRule, list[nn.Parameter]] = {}
        for parameter in group["params"]:
            members.setdefault(rules.get(names.get(id(parameter), ""), _USUAL), []).append(parameter)
        for rule, parameters in members.items():
            if rule == _USUAL:
                parted.append({**group, "params": parameters})
                continue
            decay = group["weight_decay"] if rule.weight_decay is None else rule.weight_decay
            changed = {"lr": group["lr"] * rule.learning_rate_scale, "weight_decay": decay, "rule": _mark(rule)}
            parted.append({**group, "params": parameters, **changed})
    return parted


def check_rules(groups: Groups, names: Mapping[int, str], rules: Mapping[str, ParameterRule]) -> None:
    """Refuse an optimizer whose groups do not follow the rules.

    Args:
        groups: of the optimizer.
        names: as in `by_rule`.
        rules: by name.
    Raises:
        MethodError: with the first parameter that is treated in another way.
    """
    for group in groups:
        for parameter in group["params"]:
            name = names.get(id(parameter), "")
            rule = rules.get(name, _USUAL)
            if rule != _USUAL and tuple(group.get("rule", ())) != _mark(rule):
                raise MethodError(
                    f"the optimizer does not give {name} the learning rate or weight decay that a method asks for; "
                    "build it from parameter_groups()."
                )


def _mark(rule: ParameterRule) -> tuple[Any, ...]:
    return (rule.learning_rate_scale, rule.weight_decay)


class UpdateHooks:
    """The methods' part in the steps of one optimizer.

    Args:
        optimizer: hooks are registered on it.
        methods: those that act, in the order in which they do.
        modules: what each owns, by key.
        parameters: trainable ones of the wrapped model, by name.
        seed: names the streams.
        number: optimizer steps done before.
        total: optimizer steps in all, if known.
        report: telemetry, by "key/name".
        notice: where sentences go.
    """

    def __init__(
        self,
        optimizer: torch.optim.Optimizer,
        *,
        methods: Sequence[Method],
        modules: Mapping[str, nn.Module],
        parameters: Mapping[str, nn.Parameter],
        seed: int,
        number: int,
        total: int | None,
        report: Callable[[str, Tensor | float], None],
        notice: Callable[[str], None],
    ) -> None:
        self.number, self.total = number, total
        self._methods, self._modules, self._parameters = methods, modules, parameters
        self._seed, self._report, self._notice = seed, report, notice
        self._handles: list[RemovableHandle] = [
            optimizer.register_step_pre_hook(self._before),
            optimizer.register_step_post_hook(self._after),
        ]

    def remove(self) -> None:
        """Take the hooks off the optimizer."""
        for handle in self._handles:
            handle.remove()
        self._handles = []

    def _before(self, optimizer: torch.optim.Optimizer, args: Any, kwargs: Any) -> None:
        if _is_skipped(optimizer):
            return
        for method in self._methods:
            method.before_update(self._update(optimizer, method), self._modules.get(method.key))

    def _after(self, optimizer: torch.optim.Optimizer, args: Any, kwargs: Any) -> None:
        if _is_skipped(optimizer):
            return
        with torch.no_grad():
            for method in self._methods:
                method.after_update(self._update(optimizer, method), self._modules.get(method.key))
        self.number += 1

    def _update(self, optimizer: torch.optim.Optimizer, method: Method) -> Update:
        rates = {id(p): float(group["lr"]) for group in optimizer.param_groups for p in group["params"]}
        known = {name: p for name, p in self._parameters.items() if id(p) in rates}
        device, number = next(iter(self._parameters.values())).device, self.number

        def generator(*key: int | str) -> torch.Generator:
            return keyed_generator(device, self._seed, method.key, "update", number, *key)

        return Update(
            number=number,
            total=self.total,
            parameters=known,
            learning_rates={name: rates[id(p)] for name, p in known.items()},
            generator=generator,
            report=lambda name, value: self._report(f"{method.key}/{name}", value),
            notice=self._notice,
        )


def _is_skipped(optimizer: torch.optim.Optimizer) -> bool:
    """Whether a gradient scaler found an overflow that a fused optimizer will skip inside its step."""
    overflow = getattr(optimizer, "found_inf", None)
    return overflow is not None and bool(overflow)
