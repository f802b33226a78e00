"""Weights as bytes: what they stand for, and that no pair of neighbours can saturate on any activations."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from edgeclip.export.precision.int8_conv import encode_kernel
from edgeclip.export.precision.weights8 import LARGEST, PAIR, encode, largest_pair
from edgeclip.runtime.cpu import saturates
from tests.mutants import broken

RANDOM = np.random.default_rng(5)
WEIGHTS = {
    "gaussian": RANDOM.normal(size=(768, 40)),
    "odd": RANDOM.normal(size=(97, 33)),
    "heavy": RANDOM.standard_t(2, size=(256, 64)),
    "equal": np.full((64, 32), 0.3),  # every pair is at the end
    "nearly equal": RANDOM.uniform(0.99, 1, size=(512, 64)) * RANDOM.choice([-1, 1], size=64),
    "with zeros": RANDOM.normal(size=(64, 32)) * (np.arange(32) > 3),
}


def session(node: onnx.NodeProto, a: NDArray[Any], constants: dict[str, NDArray[Any]], output: int) -> Any:
    graph = helper.make_graph(
        [node],
        "one",
        [helper.make_tensor_value_info("a", TensorProto.UINT8, a.shape)],
        [helper.make_tensor_value_info("y", output, None)],
        [numpy_helper.from_array(np.asarray(array), name) for name, array in constants.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    return onnxruntime.InferenceSession(model.SerializeToString())


def worst(q: NDArray[np.int8]) -> NDArray[np.uint8]:
    """Activations at both ends: for each output all its positive weights at 255, then all its negative ones."""
    return np.where(np.concatenate([q.T > 0, q.T < 0]), 255, 0).astype(np.uint8)


def product(q: NDArray[np.int8]) -> tuple[NDArray[Any], NDArray[Any]]:
    """What onnxruntime makes of the worst activations here, and what it should."""
    a = worst(q)
    opened = session(helper.make_node("MatMulInteger", ["a", "q"], ["y"]), a, {"q": q}, TensorProto.INT32)
    return opened.run(None, {"a": a})[0], a.astype(np.int32) @ q.astype(np.int32)


@pytest.mark.parametrize("name", WEIGHTS)
def test_bytes_stand_for_the_weight_and_no_pair_can_saturate(name: str) -> None:
    weight = WEIGHTS[name].astype(np.float32)
    for saturating in (False, True):
        found = encode(weight, saturating=saturating)
        assert np.abs(found.q).max() <= LARGEST
        assert (np.abs(found.floats - weight) <= 0.501 * found.scale).all()
    assert largest_pair(found.q) <= PAIR
    pairs = found.q[: len(weight) // 2 * 2].astype(int).reshape(-1, 2, weight.shape[1])
    for side in (np.maximum(pairs, 0), np.minimum(pairs, 0)):
        sums = 255 * side.sum(axis=1)
        assert sums.max() <= 32767
        assert sums.min() >= -32768


def test_pairs_cost_a_fifth_of_the_resolution_and_not_half() -> None:
    weight = WEIGHTS["gaussian"].astype(np.float32)
    ratio = encode(weight, saturating=True).scale / encode(weight, saturating=False).scale
    assert 1 < ratio.mean() < 1.35  # seven bits: 2


def test_a_scale_for_single_weights_would_pass_the_end() -> None:
    mutant = broken(encode, "/ PAIR * (1 + 1e-6)", "/ (PAIR + 2)")
    assert largest_pair(mutant(WEIGHTS["equal"].astype(np.float32), saturating=True).q) > PAIR


def test_many_pairs_at_the_very_end_stay_within() -> None:
    first = RANDOM.uniform(size=(1, 200000)).astype(np.float32)
    pairs = np.concatenate([first, np.float32(1) - first])  # each column sums to its largest pair
    assert largest_pair(encode(pairs, saturating=True).q) == PAIR


@pytest.mark.parametrize("name", WEIGHTS)
def test_products_on_this_machine_are_exact_at_the_worst_activations(name: str) -> None:
    found, want = product(encode(WEIGHTS[name].astype(np.float32), saturating=True).q)
    np.testing.assert_array_equal(found, want)


@pytest.mark.skipif(not saturates(), reason="this processor sums products of bytes in 32 bits")
def test_full_bytes_saturate_here() -> None:
    found, want = product(encode(WEIGHTS["gaussian"].astype(np.float32), saturating=False).q)
    assert (found != want).mean() > 0.3


def convolved(q: NDArray[np.int8]) -> tuple[NDArray[Any], NDArray[Any]]:
    """The same for a convolution, whose output is bytes, too: onnxruntime's, and one in float64 rounded likewise."""
    outputs, channels, height, width = q.shape
    a = np.zeros((2 * outputs, channels, height + 4, width + 4), np.uint8)
    a[:, :, 2:-2, 2:-2] = np.concatenate([q > 0, q < 0]) * 255
    exact = torch.nn.functional.conv2d(torch.from_numpy(a).double(), torch.from_numpy(q).double()).numpy()
    scale = np.float32(np.abs(exact).max() / 120)
    node = helper.make_node("QLinearConv", ["a", "s", "z", "q", "qs", "qz", "ys", "yz"], ["y"])
    ones, zeros = np.ones(outputs, np.float32), np.zeros(outputs, np.int8)
    constants = {
        "s": np.float32(1),
        "z": np.uint8(0),
        "q": q,
        "qs": ones,
        "qz": zeros,
        "ys": scale,
        "yz": np.uint8(128),
    }
    opened = session(node, a, constants, TensorProto.UINT8)
    found = opened.run(None, {"a": a})[0].astype(int)
    return found, np.clip(np.rint(exact / scale) + 128, 0, 255).astype(int)


@pytest.mark.parametrize("shape", [(16, 16, 3, 3), (24, 20, 1, 1), (17, 19, 3, 3), (64, 64, 3, 3)])
def test_convolutions_on_this_machine_are_exact_at_the_worst_activations(shape: tuple[int, ...]) -> None:
    kernel = np.random.default_rng(0).normal(size=shape).astype(np.float32)
    encoded = encode_kernel(kernel, saturating=True)
    step = encoded.scale[:, None, None, None]
    assert (np.abs(encoded.q * step - kernel) <= 0.501 * step).all()
    found, want = convolved(encoded.q)
    assert np.abs(found - want).max() <= 1  # a half is rounded by float32 here, by float64 there
    if (
        saturates() and shape[2] == 1
    ):  # several outputs at their largest at once: beyond rounding where it saturates
        found, want = convolved(encode_kernel(kernel, saturating=False).q)
        assert np.abs(found - want).max() > 3
