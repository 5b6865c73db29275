"""What the methods of a model report, and what they have to say about it."""

import logging
from collections.abc import Sequence

import torch
from torch import Tensor

from steadytune.methods.contract import Method

logger = logging.getLogger("steadytune")


class Telemetry:
    """Means of what is reported between two looks at it, and sentences for the log and the record.

    Args:
        methods: the active ones, asked for their judgement.

    Attributes:
        notices: the sentences said so far.
    """

    def __init__(self, methods: Sequence[Method]) -> None:
        self.notices: list[str] = []
        self._methods = methods
        self._sums: dict[str, tuple[Tensor, int]] = {}

    def add(self, name: str, value: Tensor | float) -> None:
        """Take in one value; nothing waits for the device.

        Args:
            name: "key/name" of a method, or a name of its own.
            value: a scalar.
        """
        tensor = value.detach() if isinstance(value, Tensor) else torch.tensor(value)
        total, count = self._sums.get(name, (torch.zeros_like(tensor), 0))
        self._sums[name] = (total + tensor, count + 1)

    def judge(self) -> None:
        """Let every method say what it has to say about its means so far."""
        self._judge(self._means())

    def drain(self) -> dict[str, float]:
        """The means since the last call, judged."""
        means = self._means()
        self._judge(means)
        self._sums = {}
        return means

    def notice(self, text: str) -> None:
        """Log a sentence and keep it; once, even if its numbers change.

        Args:
            text: the sentence.
        """
        shape = "".join(character for character in text if not character.isdigit())
        if all(shape != "".join(c for c in known if not c.isdigit()) for known in self.notices):
            self.notices.append(text)
            logger.warning(text)

    def _means(self) -> dict[str, float]:
        return {name: float(total) / count for name, (total, count) in self._sums.items()}

    def _judge(self, means: dict[str, float]) -> None:
        for method in self._methods:
            prefix = f"{method.key}/"
            own = {name.removeprefix(prefix): value for name, value in means.items() if name.startswith(prefix)}
            for text in method.judge(own) if own else ():
                self.notice(text)
