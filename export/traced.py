"""What traceable towers of every kind are made of: layers as MatMul reads them."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from edgeclip.models.feed_forward import Mlp, activate


class Linear(nn.Module):
    """x @ weight + bias with the weight as (in, out). `scaled`: so many leading outputs are multiplied by `scale`."""

    def __init__(self, *linears: nn.Linear, scaled: int = 0, scale: float = 1.0) -> None:
        super().__init__()
        weight = torch.cat([linear.weight.detach() for linear in linears]).clone()
        weight[:scaled] *= scale
        self.weight = nn.Parameter(weight.T.contiguous(), requires_grad=False)
        self.bias = None
        if linears[0].bias is not None:
            bias = torch.cat([linear.bias.detach() for linear in linears]).clone()
            bias[:scaled] *= scale
            self.bias = nn.Parameter(bias, requires_grad=False)

    def forward(self, x: Tensor) -> Tensor:
        y = x @ self.weight
        return y if self.bias is None else y + self.bias


class TracedMlp(nn.Module):
    """Linear, activation, linear."""

    def __init__(self, mlp: Mlp) -> None:
        super().__init__()
        self.activation = mlp.activation
        self.fc1, self.fc2 = Linear(mlp.fc1), Linear(mlp.fc2)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.fc2(activate(self.fc1(x), self.activation))
        return y
