"""How many operations a node does, from the shapes that onnxruntime's profile tells: 2 for each multiply-add of a product.

What is not a product (sums, norms, activations) is not counted: it is some 1 % of a tower, and no two tools agree on it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from math import prod
from typing import Any

Shape = Sequence[int]
Rule = Callable[[Sequence[Shape], Shape], int]  # inputs, first output -> multiply-adds


@dataclass(frozen=True)
class Node:
    """One execution of one node."""

    kind: str  # its operator
    types: tuple[str, ...]  # of the inputs, as onnxruntime writes them, e.g. "float", "uint8"
    inputs: tuple[
        tuple[int, ...], ...
    ]  # without those that an engine took into its own keeping when it loaded them
    output: tuple[int, ...]  # the first
    us: float
    parameter_bytes: int  # of constants that it reads
    output_bytes: int

    @classmethod
    def of(cls, event: Mapping[str, Any]) -> Node:
        """From an event of the profile."""
        facts = event["args"]
        inputs = [next(iter(item.items())) for item in facts["input_type_shape"]]
        outputs = [next(iter(item.values())) for item in facts["output_type_shape"]]
        return cls(
            facts["op_name"],
            tuple(kind for kind, _ in inputs),
            tuple(tuple(shape) for _, shape in inputs),
            tuple(outputs[0]) if outputs else (),
            float(event["dur"]),
            int(facts["parameter_size"]),
            int(facts["output_size"]),
        )


def _matmul(inputs: Sequence[Shape], output: Shape) -> int:
    return prod(output) * inputs[0][-1]


def _gemm(inputs: Sequence[Shape], output: Shape) -> int:
    return output[-1] * prod(inputs[0])  # (M, K), or (K, M) where it is transposed


def _convolution(weight: int) -> Rule:
    return lambda inputs, output: prod(output) * prod(inputs[weight][1:])  # (out, in / groups, kernel)


def _attention(inputs: Sequence[Shape], output: Shape) -> int:
    """Queries (.., L, E) with keys, then with values, both of (.., S, E): heads side by side or in an axis of their own."""
    return int(inputs[1][-2]) * (prod(inputs[0]) + prod(output))


# operator -> its products; with those that onnxruntime makes of the standard ones. Those of bytes stand in BYTES too.
RULES: Mapping[str, Rule] = {
    "MatMul": _matmul,
    "FusedMatMul": lambda inputs, output: prod(output) * inputs[0][-1] * inputs[0][-2] // output[-2],
    "MatMulInteger": _matmul,
    "MatMulIntegerToFloat": _matmul,
    "DynamicQuantizeMatMul": _matmul,
    "QLinearMatMul": _matmul,
    "MatMulNBits": _matmul,
    "Gemm": _gemm,
    "FusedGemm": _gemm,
    "QGemm": _gemm,
    "Conv": _convolution(1),
    "FusedConv": _convolution(1),
    "ConvInteger": _convolution(1),
    "QLinearConv": _convolution(3),
    "ConvTranspose": lambda inputs, output: prod(inputs[0]) * prod(inputs[1][1:]),
    "Attention": _attention,
}
BYTES = {
    "MatMulInteger", "MatMulIntegerToFloat", "DynamicQuantizeMatMul", "QLinearMatMul", "QGemm", "ConvInteger", "QLinearConv",
}  # fmt: skip
# products whose size does not follow from shapes alone
UNCOUNTED = {"DeformConv", "Einsum", "GRU", "LSTM", "RNN"}


def operations(node: Node) -> int:
    """Of one node: 2 for each multiply-add; 0 for what multiplies no matrices."""
    rule = RULES.get(node.kind)
    return 0 if rule is None else 2 * rule(node.inputs, node.output)


def weight_bytes(nodes: Sequence[Node], *, widened: bool) -> int:
    """Constants that one call has to read; of a table of tokens only the rows that are gathered.

    Args:
        nodes: of a graph that was run as it stands.
        widened: the engine keeps in 32 bits what is stored in 16, as a CPU does; each such weight is one Cast.
    """
    kept = [node for node in nodes if node.kind == "Cast" and node.parameter_bytes]
    tables = {node.output for node in kept} & {n.inputs[0] for n in nodes if n.kind == "Gather"}
    total = 0
    for node in nodes:
        if node.kind == "Gather" and (node.inputs[0] in tables or node.parameter_bytes > node.output_bytes):
            total += node.output_bytes
        elif node in kept and node.output in tables:
            continue
        elif node in kept and widened:
            total += node.output_bytes
        else:
            total += node.parameter_bytes
    return total
