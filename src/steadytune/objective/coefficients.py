"""Who weighs what: the factors of the label loss and of each term.

`loss = (L_task + Σ o_k L_k + Σ w_j R_j) / (1 + Σ o_k)` with `o = λ / (1 − λ)` for methods that mix convexly and `w` for
additive ones: one method alone equals its paper, and in a stack each term keeps its ratio to the label loss.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from steadytune.methods.contract import Method, MethodError


@dataclass(frozen=True)
class Coefficients:
    """Factor of each part of the loss.

    Attributes:
        task: of the label loss.
        terms: of each method's term, by key.
    """

    task: float
    terms: Mapping[str, float]

    @classmethod
    def of(cls, methods: Sequence[Method]) -> "Coefficients":
        """The factors that these methods declare.

        Args:
            methods: the active methods of a stack.
        Raises:
            MethodError: a convex weight of 1 beside another term.
        """
        weighted = [m for m in methods if m.mix == "convex" or (m.mix == "additive" and m.coefficient > 0)]
        whole = [method.key for method in weighted if method.mix == "convex" and method.coefficient == 1]
        if whole:
            if len(weighted) > 1:
                others = ", ".join(method.key for method in weighted if method.key not in whole[:1])
                raise MethodError(f"{whole[0]}.weight must be below 1 in a stack with {others}; got 1.")
            return cls(0.0, {whole[0]: 1.0})
        odds = {m.key: m.coefficient / (1 - m.coefficient) if m.mix == "convex" else m.coefficient for m in weighted}
        total = 1 + sum(odds[method.key] for method in weighted if method.mix == "convex")
        return cls(1 / total, {key: value / total for key, value in odds.items()})
