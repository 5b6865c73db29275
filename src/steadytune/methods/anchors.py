"""Weights of the encoder beside the values that they began with."""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from steadytune.methods.buffers import buffer_name
from steadytune.methods.contract import Context

HALF = (torch.bfloat16, torch.float16)
"""Weights of these types round a small pull away."""


class Anchors(nn.Module):
    """Where weights began, as buffers, so that a resumed run has them too.

    Args:
        anchored: weights that existed in the pre-trained model, by name.
    """

    def __init__(self, anchored: Mapping[str, nn.Parameter]) -> None:
        super().__init__()
        self.anchored = dict(anchored)  # a plain dictionary: they stay the model's parameters
        for name, parameter in anchored.items():
            self.register_buffer(buffer_name(name), parameter.detach().clone())

    def anchor(self, name: str) -> Tensor:
        """The value that a weight began with.

        Args:
            name: of the parameter.
        """
        return self.get_buffer(buffer_name(name))

    def distance(self, name: str, weight: Tensor | None = None) -> Tensor:
        """w − w₀, float32 or wider.

        Args:
            name: of the parameter.
            weight: w, if it is not the parameter itself.
        """
        anchor = self.anchor(name)
        return (self.anchored[name] if weight is None else weight).to(anchor.dtype) - anchor


def trained_weights(context: Context) -> tuple[dict[str, nn.Parameter], dict[str, nn.Parameter]]:
    """Trained parameters of the encoder, and those of the head, by name; tied ones once.

    Args:
        context: model, task and processes.
    """
    inside = {id(parameter) for parameter in context.anatomy.base.parameters()}
    trained = {name: p for name, p in context.model.named_parameters() if p.requires_grad}
    old = {name: p for name, p in trained.items() if id(p) in inside}
    return old, {name: p for name, p in trained.items() if name not in old}
