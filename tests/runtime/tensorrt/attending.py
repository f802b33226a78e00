"""A bundle whose image tower is one attention and one product, in fp16, written with the Attention operator and without it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import onnx
import onnx_ir as ir

from edgeclip.bundle import Axes, Bundle, Fidelity, Port, Variant, open_bundle, seal
from tests.runtime.toy import DIM, SIDE, make_bundle

MADE = Fidelity(
    8, 1e-3, 1, 1, 1, 1e-3, 1, against="image-fp32"
)  # converted, so "fp16" is what it computes in
_ATTENTION = {
    "op": "a = Attention<scale=1.0>(q, q, q)",
    "decomposed": "k = Transpose<perm=[0,1,3,2]>(q)  s = MatMul(q, k)  p = Softmax<axis=-1>(s)  a = MatMul(p, q)",
}


def make_attending(folder: Path, width: int) -> Bundle:
    """image-fp16-decomposed and image-fp16-op, in this order, with heads of this width."""
    toy = make_bundle(folder, text=False)
    variants = []
    for attention, body in _ATTENTION.items():
        opset = 23 if attention == "op" else 20
        axes = Axes("fp16", attention, opset)  # type: ignore[arg-type]
        name = f"graphs/{axes.name('image')}.onnx"
        onnx.save(ir.to_proto(_graph(body, opset, width)), toy.root / name)
        ports = (
            (Port("pixels", "float32", ("N", 3, SIDE, SIDE)),),
            (Port("embeddings", "float32", ("N", DIM)),),
        )
        variants.append(Variant(axes.name("image"), "image", axes, (name,), *ports, fidelity=MADE))
    (toy.root / toy.manifest.variants[0].files[0]).unlink()
    seal(toy.root, replace(toy.manifest, variants=tuple(reversed(variants))))
    return open_bundle(toy.root)


def _graph(attention: str, opset: int, width: int) -> ir.Model:
    numbers, heads = 3 * SIDE * SIDE, 2
    tokens = numbers // heads // width
    return ir.from_onnx_text(f"""<ir_version: 11, opset_import: ["" : {opset}]>
        toy (float[N,3,{SIDE},{SIDE}] pixels) => (float[N,{DIM}] embeddings)
        <int64[4] split = {{0, {heads}, {tokens}, {width}}}, int64[2] joined = {{0, {numbers}}}, int64[1] last = {{1}},
         float[{numbers},{DIM}] weight = {{ {", ".join(str(i % 7 / 4096) for i in range(numbers * DIM))} }}> {{
        h = Cast<to=10>(pixels)
        q = Reshape(h, split)
        {attention}
        r = Reshape(a, joined)
        w = Cast<to=10>(weight)
        y = MatMul(r, w)
        f = Cast<to=1>(y)
        n = ReduceL2(f, last)
        embeddings = Div(f, n)
        }}""")
