"""What a graph may be written for: the two attention flavours, the forms of experts, and the targets that a user can name."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

from edgeclip.errors import InputError

if TYPE_CHECKING:  # graphs are rewritten without PyTorch
    from edgeclip.export.experts import FormName

Attention = Literal["decomposed", "op", "none"]


@dataclass(frozen=True)
class Flavour:
    """One way to write a tower as ONNX."""

    attention: Attention
    opset: int
    ir_version: int
    requires: Mapping[str, str] = field(default_factory=dict)  # of the program that opens the graph


# In the order that a manifest lists them: the runtime takes the first that opens.
FLAVOURS: Mapping[str, Flavour] = {
    "decomposed": Flavour("decomposed", 20, 10, {"onnxruntime": "1.23", "ir": "10"}),
    "op": Flavour("op", 23, 11, {"onnxruntime": "1.23", "ir": "11"}),
}

PORTABLE = FLAVOURS["decomposed"]  # what is traced; the others are written from it

# Target -> flavours. The portable flavour is plain MatMul and Softmax at opset 20: TensorRT 10.3 (JetPack 6) and every
# onnxruntime from 1.23 read it. The Attention operator is understood by TensorRT's parser from 10.14.
TARGETS: Mapping[str, tuple[str, ...]] = {
    "portable": ("decomposed",),
    "onnxruntime": ("decomposed", "op"),
    "tensorrt10.3": ("decomposed",),
    "tensorrt10.16": ("decomposed", "op"),
    "all": tuple(FLAVOURS),
}

# Target -> forms of mixtures of experts. "dense" is in all of them: exact, of fixed shapes, and opens everywhere.
EXPERTS: Mapping[str, tuple[FormName, ...]] = {
    "portable": ("dense",),
    "onnxruntime": ("gather", "dense"),
    "tensorrt10.3": ("dense", "capacity"),
    "tensorrt10.16": ("dense", "capacity"),
    "all": ("gather", "dense", "capacity"),
}
# In the order that a manifest lists them; the engines' own order stands in runtime/expert_order.py.
EXPERT_FORMS: tuple[FormName, ...] = EXPERTS["all"]


def flavours_for(targets: Iterable[str]) -> tuple[str, ...]:
    """The flavours that several targets need together, in FLAVOURS' order. Raises InputError for an unknown target."""
    wanted: set[str] = set()
    for target in targets:
        if target not in TARGETS:
            raise InputError(f"target {target!r}: unknown. Choose from {', '.join(TARGETS)}.")
        wanted.update(TARGETS[target])
    if not wanted:
        raise InputError(f"no target. Choose from {', '.join(TARGETS)}.")
    return tuple(name for name in FLAVOURS if name in wanted)


def expert_forms_for(targets: Iterable[str], named: Iterable[str] = ()) -> tuple[FormName, ...]:
    """The forms of experts that several targets need together, in EXPERT_FORMS' order. `named`: these instead.

    Raises InputError for a form that there is not.
    """
    wanted = set(named)
    if unknown := sorted(wanted - set(EXPERT_FORMS)):
        raise InputError(f"--moe {unknown[0]}: unknown. Choose from {', '.join(EXPERT_FORMS)}.")
    wanted = wanted or {form for target in targets for form in EXPERTS[target]}
    return tuple(form for form in EXPERT_FORMS if form in wanted)


def why(form: FormName, top_k: int, experts: int) -> str:
    """In a few words, what a form of experts is written for. `experts`: of the largest mixture, of which a token takes `top_k`."""
    return {
        "gather": f"onnxruntime takes sizes that depend on data, and computes {top_k} of {experts} experts for each token",
        "dense": f"opens everywhere and is exact, and computes all {experts} experts for each token",
        "capacity": "TensorRT wants fixed sizes, and each expert computes so many tokens; what finds no place is left out",
    }[form]
