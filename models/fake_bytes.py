"""What rounding to bytes does to floats, with gradients that pass through it: training that knows it will be quantised.

Forward: the values that bytes stand for, exactly as the quantised graph has them (QuantizeLinear rounds halves to even and clips; weights
have a scale for each output). Backward: rounding counts as nothing at all, what was clipped has no gradient, and a scale learns from the
rounding errors inside its range and from how far the ends lie outside.
Sources: Bengio et al. 2013, arXiv:1308.3432 (straight-through); Esser et al. 2020 (LSQ), arXiv:1902.08153, equation 3, for the scale;
Bhalgat et al. 2020 (LSQ+), arXiv:2004.09576, for a learned zero point.
"""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

ByteType = Literal["uint8", "int8"]
ENDS: dict[str, tuple[int, int]] = {"uint8": (0, 255), "int8": (-128, 127)}
LARGEST = 127  # of a weight's bytes: symmetric, -128 stays unused
PAIR = 128  # two neighbouring weights' bytes of one sign: with 255 times more, 16 bits do not hold the sum of their products
GROWTH = 30.0  # what a learning rate does to a scale in one step, in units of itself: weights are small, and Adam's steps the same for all


def through_bytes(x: Tensor, scale: Tensor, zero: Tensor, low: int, high: int) -> Tensor:
    """What is left of values after bytes were made of them: (clip(round(x / scale) + zero, low, high) - zero) * scale.

    Args:
        x: float32 of any shape.
        scale: above 0; a shape that broadcasts to x's: () for all, (M, 1) for each row.
        zero: whole numbers as float32, shape as `scale`.
        low, high: the ends of the bytes.
    Returns:
        As x. Gradients reach x (1 inside the range, 0 where it was clipped), `scale` and `zero`.
    """
    found: Tensor = _ThroughBytes.apply(x, scale, zero, low, high)  # type: ignore[no-untyped-call]
    return found


class _ThroughBytes(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, scale: Tensor, zero: Tensor, low: int, high: int) -> Tensor:
        q = torch.round(x / scale) + zero
        ctx.save_for_backward(x, scale, zero)
        ctx.ends = low, high
        return (q.clamp(low, high) - zero) * scale

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        (gradient,) = gradients
        x, scale, zero = ctx.saved_tensors
        low, high = ctx.ends
        ratio = x / scale
        q = torch.round(ratio) + zero
        inside = (q >= low) & (q <= high)
        for_x = gradient * inside
        for_scale = for_zero = None
        if ctx.needs_input_grad[1]:
            step = torch.where(inside, q - zero - ratio, q.clamp(low, high) - zero)
            for_scale = (gradient * step).sum_to_size(scale.shape)
        if ctx.needs_input_grad[2]:
            for_zero = (gradient * ~inside * -scale).sum_to_size(zero.shape)
        return for_x, for_scale, for_zero, None, None


def weight_scale(weight: Tensor, saturating: bool) -> Tensor:
    """The scale of each output of a linear layer, as the exporter's weights8.py chooses it, to the last bit on the CPU.

    Args:
        weight: (M, K) float32.
        saturating: keep every two neighbours along K within what 16 bits hold of their products with bytes.
    Returns:
        (M, 1) float32 above 0, without gradient.
    """
    weight = weight.detach()
    scale = weight.abs().amax(dim=1) / weight.new_full((len(weight),), LARGEST)
    if saturating:
        pairs = F.pad(weight, (0, weight.shape[1] % 2))
        pairs = torch.unflatten(pairs, 1, (-1, 2))
        sides = torch.maximum(pairs.clamp(min=0).sum(2), (-pairs).clamp(min=0).sum(2))
        # one of two rounded up must not bring them beyond PAIR: the margin is for the division
        margin = weight.new_full((len(weight),), 1 + 1e-6)
        scale = torch.maximum(scale, sides.amax(dim=1) / PAIR * margin)
    return torch.where(scale > 0, scale, torch.ones_like(scale))[:, None]


class QuantisedLinear(nn.Linear):
    """A linear layer whose inputs and weights go through bytes; `range` learns how the inputs do.

    `range` holds steps away from where it started, 0 at first: the scale's logarithm, and for uint8 the zero point, both in units in which a
    weight's learning rate moves them by GROWTH times as much.
    """

    scale: Tensor  # () float32 as calibrated
    zero: Tensor  # () a whole number, float32

    def __init__(
        self, inputs: int, outputs: int, *, bias: bool, bytes_: ByteType = "uint8", saturating: bool = True
    ) -> None:
        super().__init__(inputs, outputs, bias)
        self.ends, self.saturating = ENDS[bytes_], saturating
        self.range = nn.Parameter(torch.zeros(2 if bytes_ == "uint8" else 1))
        self.register_buffer("scale", torch.ones(()))
        self.register_buffer("zero", torch.zeros(()))

    @classmethod
    def of(cls, linear: nn.Linear, *, bytes_: ByteType, saturating: bool) -> QuantisedLinear:
        """With the weight and bias of a layer, not copies."""
        with torch.device("meta"):
            made = cls(
                linear.in_features,
                linear.out_features,
                bias=linear.bias is not None,
                bytes_=bytes_,
                saturating=saturating,
            )
        made.register_parameter("weight", linear._parameters["weight"])
        made.register_parameter("bias", linear.bias)
        with torch.device(linear.weight.device):
            made.range = nn.Parameter(torch.zeros(made.range.shape))
            made.scale, made.zero = torch.ones(()), torch.zeros(())
        return made

    def input_range(self, share: float = 1.0) -> tuple[Tensor, Tensor]:
        """(), (): scale and zero point of the inputs as they are now; `share`: of the gradients that reach `range`."""
        steps = self.range * share + self.range.detach() * (1 - share) if share != 1 else self.range
        scale = self.scale * (GROWTH * steps[0]).exp()
        if len(steps) == 1:
            return scale, self.zero
        low, high = self.ends
        zero = (self.zero + GROWTH * (high - low) * steps[1]).clamp(low, high)
        return scale, zero + (zero.round() - zero).detach()

    def rounded_weight(self) -> Tensor:
        """(M, K) what the weight's bytes stand for; its gradient is the weight's."""
        scale = weight_scale(self.weight, self.saturating)
        return through_bytes(self.weight, scale, torch.zeros_like(scale), -LARGEST, LARGEST)

    def forward(self, input: Tensor) -> Tensor:
        """(..., K) -> (..., M) float32, under autocast too: 16 bits do not hold what bytes stand for."""
        with torch.autocast(input.device.type, enabled=False):
            # LSQ, section 2.2: the more values a scale serves, the larger is the sum of their gradients
            share = (input.numel() * self.ends[1]) ** -0.5
            x = through_bytes(input.float(), *self.input_range(share), *self.ends)
            return F.linear(x, self.rounded_weight(), self.bias)
