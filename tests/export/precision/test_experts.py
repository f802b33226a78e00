"""Mixtures in every precision: routers stay as they are, and what an expert is not asked for says nothing of its ranges."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
import torch
from torch import Tensor

from edgeclip.bundle import Port
from edgeclip.export.compress.routing import routing_agreement
from edgeclip.export.experts import ExpertForm, traced_feed_forward
from edgeclip.export.form import unit
from edgeclip.export.linears import array_of, linears, root
from edgeclip.export.observe import observe, rows
from edgeclip.export.onnx_graph import capture
from edgeclip.export.passes import PASSES
from edgeclip.export.precision import METHODS, Converted, Request, convert, fp8, int8_static
from edgeclip.export.precision import ranges as ranges_
from edgeclip.export.precision.experts import ROUTER, counting, routing
from edgeclip.export.precision.ranges import see
from edgeclip.export.precision.smooth import smooth
from edgeclip.export.precision.typed import deciding, fixed, rounded
from edgeclip.export.targets import PORTABLE
from edgeclip.export.tensorrt_rules import problems
from edgeclip.export.towers import TracedTower
from edgeclip.export.traced import Linear
from edgeclip.models.feed_forward import MoeMlp
from edgeclip.runtime.fidelity import relative_distance
from tests.export.precision.graphs import Array, check
from tests.mutants import broken

FORMS = ("dense", "gather", "capacity")
SLOW = [pytest.param("dense"), *(pytest.param(form, marks=pytest.mark.parity) for form in FORMS[1:])]
TOKENS, WIDTH = 17, 48
OUTLIER = 11  # channel of the norm in front of the experts
INPUTS = np.random.default_rng(1).standard_normal((16, TOKENS, WIDTH)).astype(np.float32)


class Half(torch.nn.Module):
    """The half of a block that has experts, and what makes rows of its tokens."""

    def __init__(self, moe: MoeMlp, form: ExpertForm) -> None:
        super().__init__()
        self.norm, self.mlp = torch.nn.LayerNorm(WIDTH), traced_feed_forward(moe, form)
        self.last = Linear(torch.nn.Linear(WIDTH, 24))

    def forward(self, x: Tensor) -> Tensor:
        return unit(self.last((x + self.mlp(self.norm(x))).mean(dim=1)))


@cache
def graph(form: Any, kind: str = "") -> ir.Model:
    """A mixture of four experts, two a token, behind a norm.

    Args:
        kind: "outlier": one channel of what experts read is 64 times larger, and nothing else is changed; "idle": no token takes
            the last expert; "wild": what the last expert makes inside of tokens that do not take it is larger by far.
    """
    model = captured(form).clone()
    constants = model.graph.initializers

    def plant(name: str, change: Callable[[Array], Array]) -> None:
        old = constants[name].const_value
        assert old is not None
        constants[name].const_value = ir.tensor(change(old.numpy().copy()).astype(np.float32), name=name)

    def scaled(by: float, where: Any) -> Callable[[Array], Array]:
        def change(array: Array) -> Array:
            array[where] *= by
            return array

        return change

    router: Array = constants["mlp.router.weight"].const_value.numpy()  # type: ignore[union-attr]
    others = router[:, :3].mean(axis=1)
    if kind == "outlier":
        for name in ("norm.weight", "norm.bias"):
            plant(name, scaled(64, OUTLIER))
        for name in ("mlp.router.weight", *(f"mlp.experts.{i}.fc1.weight" for i in range(4))):
            plant(name, scaled(1 / 64, OUTLIER))
    if kind == "idle":
        plant("mlp.router.weight", lambda array: np.stack([*array.T[:3], -8 * others], axis=1))
        plant("norm.bias", lambda array: others * 4)
    if kind == "wild":
        # a unit that fires for tokens that the router turns away from the expert, and that nothing reads
        unit_ = 1e3 * (others - router[:, 3])
        plant(
            "mlp.experts.3.fc1.weight", lambda array: np.concatenate([unit_[:, None], array[:, 1:]], axis=1)
        )
        plant("mlp.experts.3.fc1.bias", lambda array: np.concatenate([[-2e3], array[1:]]))
        plant("mlp.experts.3.fc2.weight", scaled(0, 0))
    return model


@cache
def captured(form: Any) -> ir.Model:
    torch.manual_seed(1)
    moe = MoeMlp(WIDTH, 96, "gelu", 4, 2)
    half = Half(moe, ExpertForm(form, {0: (TOKENS,) * 4} if form == "capacity" else {}))
    mixture: Any = half.mlp
    with torch.no_grad():
        mixture.router.weight.mul_(4)
        half.norm.bias.normal_(std=0.3)
    port = Port("x", "float32", ("N", TOKENS, WIDTH))
    out = Port("embeddings", "float32", ("N", 24))
    tower = TracedTower(
        "image", half.eval(), (torch.zeros(2, TOKENS, WIDTH),), (port,), (out,), {}, (PORTABLE,)
    )
    model = capture(tower)
    for step in PASSES:
        step(model)
    return model


def converted(form: str, method: str, kind: str = "", **settings: Any) -> Converted:
    request = Request(inputs=INPUTS, threads=1, saturating=False, **settings)
    return convert(graph(form, kind), method, request)


def choices(model: ir.Model) -> Array:
    """(N, T, E) what the softmax of the router's shares gives."""
    (softmax,) = [node for node in routing(model) if node.op_type == "Softmax"]
    name = str(softmax.outputs[0].name)
    return np.concatenate([batch[name] for batch in observe(model, [name], INPUTS, threads=1)])


def router_of(model: ir.Model) -> tuple[ir.Node, Array]:
    found = [
        (node, array_of(node.inputs[1]))
        for node in model.graph
        if node.op_type == "MatMul"
        and node.inputs[1] is not None
        and str(root(node.inputs[1]).name).endswith(ROUTER)
    ]
    ((node, weight),) = found
    assert weight is not None
    return node, weight


@pytest.mark.parity
@pytest.mark.parametrize("form", SLOW)
def test_the_forms_agree(form: str) -> None:
    np.testing.assert_allclose(
        rows(graph(form), INPUTS, threads=1), rows(graph("dense"), INPUTS, threads=1), atol=1e-6
    )
    assert (choices(graph(form)) > 0).sum(-1).min() == 2


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("form", SLOW)
def test_the_router_stays_fp32_and_its_weight_what_it_was(form: str, method: str) -> None:
    plain = graph(form)
    found = converted(form, method, smoothing=0)
    check(found.model)
    node, weight = router_of(found.model)
    np.testing.assert_array_equal(weight, router_of(plain)[1])
    before = [node, *(value.producer() for value in node.inputs if value is not None)]
    kinds = {maker.op_type for maker in before if maker is not None}
    assert kinds <= {"MatMul", "Cast", "LayerNormalization"}, "what the router reads is made bytes"
    # its product, the comparison and the softmax
    own = routing(found.model)
    assert {"MatMul", "Softmax", "Where"} <= {one.op_type for one in own}
    types = {value.dtype for one in own for value in one.outputs if value.dtype is not None}
    assert types <= {ir.DataType.FLOAT, ir.DataType.BOOL, ir.DataType.INT32}
    if method in ("int8", "int8-dynamic", "fp8", "int4"):
        (line,) = [line for r in found.reports for line in r.near_misses if ROUTER in line]
        assert line.endswith("a router, whose choices rounding would change")
        # experts are no routers
        changed = {report.name: report.changed for report in found.reports}
        assert changed[METHODS[method].precision] >= 8


@pytest.mark.parity
@pytest.mark.parametrize("form", SLOW)
def test_every_precision_is_near_and_takes_nearly_the_same_experts(form: str) -> None:
    want, chose = rows(graph(form), INPUTS, threads=1), choices(graph(form)) > 0
    for method, limit in (("fp16", 0.01), ("int8", 0.15)):
        model = converted(form, method).model
        model = rounded(model) if method == "fp16" else model
        assert relative_distance(want, rows(model, INPUTS, threads=1)) < limit, method
        assert ((choices(model) > 0) & chose).sum() / chose.sum() > 0.95, method


@pytest.mark.parity
def test_without_the_rule_a_router_would_be_rounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(fixed.__globals__, "routing", lambda model: set())
    model = convert(graph("dense"), "fp16", Request(inputs=INPUTS, threads=1)).model
    node, _ = router_of(model)
    assert node.outputs[0].dtype == ir.DataType.FLOAT16
    assert node.name not in deciding(model)


# ---- ranges


@pytest.mark.parity
@pytest.mark.parametrize(("form", "own"), [("dense", 4), ("gather", 0), ("capacity", 8)])
def test_the_rows_that_count_are_those_of_the_tokens_that_chose(form: str, own: int) -> None:
    model = graph(form)
    by, chose = counting(model), choices(model) > 0
    assert len(by) == own
    inputs = {layer.name: str(layer.x.name) for layer in linears(model)}
    seen = see(model, dict.fromkeys(inputs.values(), -1), INPUTS, threads=1, counting=by)
    for i in range(4):
        for layer in ("fc1", "fc2"):
            known = seen[inputs[f"mlp.experts.{i}.{layer}.weight"]]
            every = form == "dense" and layer == "fc1"  # one input for all experts
            assert known.count == (chose[..., 0].size if every else chose[..., i].sum())


@pytest.mark.parity
def test_forms_give_an_expert_the_same_range() -> None:
    found = []
    for form in FORMS:
        model = graph(form, "wild")
        (x,) = [str(layer.x.name) for layer in linears(model) if layer.name.endswith("experts.3.fc2.weight")]
        assert 0.2 < (choices(model)[..., 3] > 0).mean() < 0.8
        found.append(see(model, {x: -1}, INPUTS, threads=1, counting=counting(model))[x])
    for other in found[1:]:
        np.testing.assert_allclose(other.peaks, found[0].peaks, rtol=1e-4, atol=1e-4)
    unmasked = see(graph("dense", "wild"), {x_of("dense"): -1}, INPUTS, threads=1)[x_of("dense")]
    assert unmasked.peaks.max() > 20 * found[0].peaks.max(), "nothing wild was planted"


def x_of(form: str) -> str:
    (x,) = [str(la.x.name) for la in linears(graph(form, "wild")) if la.name.endswith("experts.3.fc2.weight")]
    return x


def test_what_an_expert_is_not_asked_for_widens_no_range(monkeypatch: pytest.MonkeyPatch) -> None:
    want = rows(graph("dense", "wild"), INPUTS, threads=1)

    def found(method: str) -> tuple[float, float]:
        """Relative distance, and the scale of what the last expert's second layer reads in fp8."""
        model = converted("dense", method, "wild", ranges="min-max").model
        scale = model.graph.initializers.get("mlp.experts.3.fc2.weight.input.scale")
        size = 0.0 if scale is None or scale.const_value is None else float(scale.const_value.numpy())
        return relative_distance(want, rows(model, INPUTS, threads=1)), size

    right, eight = found("int8")[0], found("fp8")[1]
    for module in (int8_static, fp8):
        monkeypatch.setattr(module, "counting", lambda model: {})
    assert right < 0.05
    assert found("int8")[0] > 3 * right
    assert found("fp8")[1] > 20 * eight > 0


@pytest.mark.parity
@pytest.mark.parametrize("method", ["int8", "int8-dynamic", "fp8"])
@pytest.mark.parametrize("form", SLOW)
def test_an_expert_that_nothing_is_known_of_stays_float(form: str, method: str) -> None:
    assert not (choices(graph(form, "idle"))[..., 3] > 0).any()
    found = converted(form, method, "idle")
    lines = [line for report in found.reports for line in report.near_misses if "experts.3" in line]
    few = "its expert took 0 tokens of the calibration inputs, 32 are needed"
    for layer in ("fc1", "fc2"):
        assert f"mlp.experts.3.{layer}.weight: {few}" in lines
        value = found.model.graph.initializers[f"mlp.experts.3.{layer}.weight"]
        assert value.dtype in (ir.DataType.FLOAT, ir.DataType.FLOAT16)
    assert np.isfinite(rows(found.model, INPUTS[:1], threads=1)).all()


@pytest.mark.parity
def test_how_few_is_said_by_the_request() -> None:
    lines = [line for r in converted("gather", "int8", fewest=10_000).reports for line in r.near_misses]
    assert sum("10000 are needed" in line for line in lines) == 8


@pytest.mark.parametrize("form", SLOW)
def test_a_large_channel_moves_into_all_experts_and_the_router(form: str) -> None:
    plain, hard = graph(form), graph(form, "outlier")
    np.testing.assert_allclose(rows(hard, INPUTS, threads=1), rows(plain, INPUTS, threads=1), atol=2e-6)
    model = hard.clone()
    layers = linears(model)
    names = dict.fromkeys((str(layer.x.name) for layer in layers if ".experts." in layer.name), -1)
    seen = see(model, names, INPUTS, threads=1, counting=counting(model))
    nodes = {layer.node for layer in layers if ".experts." in layer.name}
    smooth(model, nodes, seen, alpha=0.75, how="mse", kind="uint8", saturating=False)
    # powers of two: the same function bit by bit
    np.testing.assert_array_equal(rows(model, INPUTS, threads=1), rows(hard, INPUTS, threads=1))
    scale = {
        node.name: array_of(node.inputs[1]) for node in model.graph if node.op_type == "LayerNormalization"
    }
    before = {
        node.name: array_of(node.inputs[1]) for node in hard.graph if node.op_type == "LayerNormalization"
    }
    changed = [name for name in scale if not np.array_equal(scale[name], before[name])]
    assert len(changed) == 1, "the norm in front of the experts, and no other"
    ratio = before[changed[0]] / scale[changed[0]]
    assert ratio[OUTLIER] == ratio.max() >= 8
    np.testing.assert_array_equal(router_of(model)[1], router_of(hard)[1] * ratio[:, None])


@pytest.mark.parity
@pytest.mark.parametrize("form", SLOW)
def test_outliers_cost_little(form: str) -> None:
    want = rows(graph(form), INPUTS, threads=1)
    found = [
        relative_distance(
            want, rows(converted(form, "int8", "outlier", smoothing=s).model, INPUTS, threads=1)
        )
        for s in (0, None)
    ]
    assert found[1] < 0.15
    assert found[0] > 2 * found[1]


@pytest.mark.parity
def test_rows_that_are_kept_follow_from_the_inputs(monkeypatch: pytest.MonkeyPatch) -> None:
    """Not from how many rows an expert saw of a batch: memory would grow with them."""
    model = graph("gather")
    x = next(str(la.x.name) for la in linears(model) if la.name.endswith("experts.1.fc1.weight"))
    monkeypatch.setattr(ranges_, "_ROWS", 32)
    right = see(model, {x: -1}, INPUTS, threads=1)[x]
    assert 16 < len(right.rows) <= 32 < right.count
    mutant = broken(ranges_.see, "size = len(batch[first])", "size = len(batch[next(iter(values))])")
    assert len(mutant(model, {x: -1}, INPUTS, threads=1)[x].rows) > 32


@pytest.mark.parity
@pytest.mark.parametrize("method", ["int8", "fp8", "fp16"])
def test_tensorrt_reads_the_dense_and_the_capacity_form(method: str) -> None:
    for form in ("dense", "capacity"):
        model = converted(form, method, **({"activations": "int8"} if method == "int8" else {})).model
        plain = problems(graph(form), "10.3")
        assert [line for line in problems(model, "10.3") if line not in plain] == [], form


def test_agreement_counts_the_choices_that_stay() -> None:
    plain = graph("dense")
    assert routing_agreement(plain, plain, INPUTS, threads=1) == 1
    turned = plain.clone()
    router = turned.graph.initializers["mlp.router.weight"]
    assert router.const_value is not None
    router.const_value = ir.tensor(router.const_value.numpy()[:, [1, 0, 2, 3]], name="mlp.router.weight")
    before, after = choices(plain) > 0, choices(turned) > 0
    found = routing_agreement(plain, turned, INPUTS, threads=1)
    assert found == (before & after).sum() / before.sum() < 0.9
