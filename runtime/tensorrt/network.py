"""The parsed network, counted: in which types it multiplies, whether attention is still one operator. Before the build, no GPU."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from math import prod
from typing import Any

from edgeclip.bundle import Variant
from edgeclip.runtime.tensorrt.flavour import has_kernel
from edgeclip.runtime.tensorrt.record import EngineReport, NetworkReport

WORDS: Mapping[str, str] = {"FLOAT": "fp32", "HALF": "fp16"}  # the others only in small letters, e.g. "BF16"

_PRODUCTS = ("MATRIX_MULTIPLY", "CONVOLUTION", "DECONVOLUTION")
# What stands between a weight and its product: the parser aligns ranks by shuffles.
_MOVES = ("SHUFFLE", "IDENTITY", "CAST", "SLICE", "SQUEEZE", "UNSQUEEZE")
# Of the weights, how many must multiply in the promised type. A search leaves in fp32 what rounding would cost too much, 86 nodes
# of a SigLIP, and may quantise but a few layers; a graph that fell back has all of its weights in another type.
LEAST: Mapping[str, float] = {"fp32": 0.5, "fp16": 0.5, "bf16": 0.5, "int8": 0.1, "fp8": 0.1, "int4": 0.1}
MOST_UNFUSED = 0.5  # of the Attention operators: the last block's single query may have no fused kernel, and hardly needs one
MOST_REFORMATS = 0.25  # of an engine's layers


def read_network(module: Any, network: Any) -> NetworkReport:
    """Count a network's layers.

    A product counts under the type that it multiplies in: int8 or fp8 where both operands are dequantised from it, else the
    operands' own. One of int4 weights counts as int4, although TensorRT widens them first.

    Args:
        module: `tensorrt` or `tensorrt_rtx`, which parsed it.
        network: its INetworkDefinition, as the parser left it.
    """
    layers = [network.get_layer(i) for i in range(network.num_layers)]
    graph = _Graph(
        module,
        {layer.get_output(i).name: layer for layer in layers for i in range(layer.num_outputs)},
    )
    attention = _attention(network)
    products: Counter[str] = Counter()
    weights: Counter[str] = Counter()
    for layer in layers:
        if layer.type.name in _PRODUCTS:
            name, elements = graph.product(layer)
            products[name] += 1
            weights[name] += elements
    return NetworkReport(
        layers=len(layers),
        products=dict(products),
        weights={name: count for name, count in weights.items() if count},
        attention=len(attention),
        unfused=sum(not _fused(layer) for layer in attention),
        types=dict(Counter(word(layer.get_output(0).dtype) for layer in layers if layer.num_outputs)),
    )


def write_out_attention(module: Any, network: Any) -> int:
    """Let the library write out each Attention operator that has no fused kernel; it would refuse the network otherwise.

    The others stay unmarked, so that an engine of them is the proof that each became one kernel. Every release that parses the
    operator can be told, from 10.14 to 11.4.

    Returns:
        How many were marked.
    """
    plain = [layer for layer in _attention(network) if not _fused(layer)]
    for layer in plain:
        layer.__class__ = module.IAttentionInputLayer
        layer.attention.decomposable = True
    return len(plain)


def _attention(network: Any) -> list[Any]:
    """Where each Attention operator begins; each has an ATTENTION_OUTPUT as well."""
    layers = (network.get_layer(i) for i in range(network.num_layers))
    return [layer for layer in layers if layer.type.name == "ATTENTION_INPUT"]


def _fused(layer: Any) -> bool:
    queries = layer.get_input(0)
    _, heads, count, width = queries.shape
    return has_kernel(word(queries.dtype), heads, count, width)


def word(dtype: Any) -> str:
    """A TensorRT data type as this project calls it, e.g. HALF -> "fp16"."""
    return WORDS.get(dtype.name, dtype.name.lower())


@dataclass(frozen=True)
class _Graph:
    """Which layer makes which tensor."""

    module: Any
    makers: Mapping[str, Any] = field(repr=False)

    def product(self, layer: Any) -> tuple[str, int]:
        """-> (type, elements of its weights)."""
        first = layer.get_input(0)
        if layer.num_inputs == 1:  # a convolution that holds its kernel itself
            return word(first.dtype), self._kernel(layer)
        operands = [layer.get_input(i) for i in range(2)]
        stored = [self._stored(tensor) for tensor in operands]
        elements = sum(prod(t.shape) for t, (_, constant) in zip(operands, stored, strict=True) if constant)
        types = {name for name, _ in stored}
        if len(types) == 1:
            return types.pop(), elements
        return "int4" if "int4" in types else word(first.dtype), elements

    def _kernel(self, layer: Any) -> int:
        """Elements of a convolution's own kernel."""
        layer.__class__ = getattr(
            self.module, f"I{layer.type.name.title()}Layer"
        )  # Python gets the base class
        channels = layer.get_input(0).shape[1] * layer.num_output_maps
        return int(channels // layer.num_groups * prod(layer.kernel_size_nd))

    def _stored(self, tensor: Any) -> tuple[str, bool]:
        """-> (type before it was dequantised, else its own; whether it is a constant)."""
        maker = self._maker(tensor)
        name = word(tensor.dtype)
        if maker is not None and maker.type.name == "DEQUANTIZE":
            name = word(maker.get_input(0).dtype)
            maker = self._maker(maker.get_input(0), (*_MOVES, "QUANTIZE"))
        return name, maker is not None and maker.type.name == "CONSTANT"

    def _maker(self, tensor: Any, through: tuple[str, ...] = _MOVES) -> Any:
        """The layer that makes a tensor, past those that only move it; None: it is an input."""
        maker = self.makers.get(tensor.name)
        while maker is not None and maker.type.name in through:
            maker = self.makers.get(maker.get_input(0).name)
        return maker


def judge(variant: Variant, network: NetworkReport, engine: EngineReport | None) -> tuple[str, ...]:
    """Where a network, and the engine made from it, are not what their variant promises; one line each, () if they are.

    Args:
        engine: None: it could not be inspected, there is no driver here.
    """
    found = [*_of_types(variant, network)]
    if variant.axes.attention == "op" and not network.attention:
        found.append("attention: the Attention operator was promised, the network has none")
    if network.unfused > MOST_UNFUSED * network.attention:
        found.append(f"attention: {network.unfused} of {network.attention} operators have no fused kernel")
    if engine is not None:
        found += _of_engine(variant, network, engine)
    return tuple(found)


def remarks(variant: Variant, engine: EngineReport | None) -> tuple[str, ...]:
    """What is worth knowing of a built engine and no shortfall: plain products promise no fused attention, and a kernel may be named otherwise.

    Args:
        engine: None: its inspector told nothing.
    """
    if engine is None:
        return ("engine: its inspector told nothing, only its network is known",)
    plain = variant.axes.attention == "decomposed" and variant.axes.precision != "fp32"
    if engine.opaque or engine.fused_attention or not plain:
        return ()
    return ("engine attention: no kernel of it is known as a fused one",)


def _of_types(variant: Variant, network: NetworkReport) -> Iterator[str]:
    promised, total = variant.axes.precision, sum(network.weights.values())
    share = network.weights.get(promised, 0) / total if total else 1.0
    if share < LEAST[promised]:
        shares = sorted(((count / total, name) for name, count in network.weights.items()), reverse=True)
        have = ", ".join(f"{part:.0%} {name}" for part, name in shares)
        least = f"{promised} was promised, for {LEAST[promised]:.0%} of the weights at least"
        yield f"types: {least}; they multiply in {have}"


def _of_engine(variant: Variant, network: NetworkReport, engine: EngineReport) -> Iterator[str]:
    if not engine.opaque:  # what is missing may be inside
        yield from _of_layers(variant, network, engine)
    if engine.reformats > MOST_REFORMATS * engine.layers:
        yield (
            f"engine reformats: {engine.reformats} of {engine.layers} layers only change types or layouts, "
            f"{MOST_REFORMATS:.0%} is the most expected"
        )


def _of_layers(variant: Variant, network: NetworkReport, engine: EngineReport) -> Iterator[str]:
    promised, fused = variant.axes.precision, engine.fused_attention
    given = engine.types.get(promised, 0)
    floats = given + (engine.types.get("fp32", 0) if promised != "fp32" else 0)
    if promised in ("fp16", "bf16") and given < LEAST[promised] * floats:
        yield f"engine types: {promised} was promised, {given} of {floats} layers give it"
    if promised in ("int8", "fp8") and engine.types and not given:
        yield f"engine types: {promised} was promised, no layer gives it"
    if variant.axes.attention == "op":
        # None at all: a release that names its kernels otherwise. It built no operator without one, see write_out_attention.
        wanted = network.attention - network.unfused
        if 0 < fused < wanted:
            yield f"engine attention: {fused} of {wanted} fused into one kernel"
