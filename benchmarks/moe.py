"""What a mixture of experts costs in each form: time beside dense towers and PyTorch's loop, and agreement with PyTorch.

    python -m benchmarks.moe --images photographs/ -o benchmarks/results/moe
    python -m benchmarks.moe --shapes b16 --rounds 5 --images photographs/

Shapes have random weights: experts are the dense tower's feed-forward, each moved by a tenth of its own spread, so that routes differ
from token to token and experts from each other. Times take turns in one process, so that a busy machine slows all alike.

Every ratio is to the dense form in the same turns. GMAC are the multiplications of what is computed for a picture; "over its share" is a form's time over the dense form's, divided by the
same ratio of multiplications: 1 where overhead costs nothing.
"""

from __future__ import annotations

import argparse
import gc
import json
import resource
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn import functional as F

from benchmarks.machine import describe
from edgeclip.bundle import Axes, Licence, Preprocessing, Variant
from edgeclip.export.capacity import DROP, capacities, factor, room_for_all
from edgeclip.export.experts import DENSE, ExpertForm
from edgeclip.export.onnx_graph import trace
from edgeclip.export.parity import source_rows
from edgeclip.export.routing import experts_of, watches
from edgeclip.export.samples import pictures_in, pixels_of
from edgeclip.export.towers import tower_of
from edgeclip.export.weights import save_graphs
from edgeclip.models.clip import Clip, ImageTower
from edgeclip.models.config import ClipConfig, ImageConfig, MoeConfig, TransformerConfig
from edgeclip.models.feed_forward import MoeMlp, moe_layers
from edgeclip.models.source import Source
from edgeclip.runtime.engines import EngineOptions, open_engine, run
from edgeclip.runtime.fidelity import measure as compared

# name -> (picture size, patch size, width, blocks, heads, embedding width)
SHAPES = {"b16": (224, 16, 768, 12, 12, 512), "l14": (224, 14, 1024, 24, 16, 768)}
EXPERTS, TOP_K = 4, 2
MOVED = 0.1  # of a weight's own spread: how far an expert is from the others

Array = NDArray[Any]
Rows = Callable[[Array], Array]  # (N, 3, H, W) pixels -> (N, D) unit rows


def source(shape: str, hidden: int = 1, experts: int = 0) -> Source:
    """An image tower of a published shape with random weights. `hidden`: times the usual hidden width."""
    size, patch, width, layers, heads, dim = SHAPES[shape]
    torch.manual_seed(0)
    moe = MoeConfig((experts,) * layers, TOP_K) if experts else None
    blocks = TransformerConfig(width, layers, heads, 4 * hidden * width, "quick_gelu", moe=moe)
    model = Clip(ClipConfig(dim, ImageConfig(blocks, (size, size), patch), None)).eval()
    for mixture in moe_layers(model).values():
        _relatives(mixture)
    mean, std = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
    spec = Preprocessing((size, size), "shortest_crop", "bicubic", mean, std)
    return Source(
        shape, shape, "clip", model, dim, "softmax", spec, None, b"", "cls", Licence("none"), "0" * 64
    )


@torch.no_grad()
def _relatives(mixture: MoeMlp) -> None:
    """Give every expert the first one's weights, moved a little."""
    first = {name: weight.clone() for name, weight in mixture.experts[0].named_parameters()}
    for expert in mixture.experts:
        for name, weight in expert.named_parameters():
            weight.copy_(first[name] + MOVED * first[name].std() * torch.randn_like(weight))


def gmac(config: ImageConfig, hidden: float) -> float:
    """Multiplications of a picture, in 1e9. `hidden`: times 4 W of each token's feed-forward. The last block has one token to compute."""
    t, w, layers = config.tokens, config.blocks.width, config.blocks.layers
    whole = t * (4 * w * w + 2 * t * w + hidden * 8 * w * w)
    last = t * 2 * w * w + 2 * w * w + 2 * t * w + hidden * 8 * w * w
    patches = (t - 1) * 3 * config.patch_size**2 * w
    return (whole * (layers - 1) + last + patches) / 1e9


def graph(made: Source, name: str, form: ExpertForm, folder: Path, threads: int) -> Rows:
    """Trace, write and open the image tower in one form."""
    tower = tower_of(made, "image", ("decomposed",), experts=form)
    model, _ = trace(tower, tower.flavours[0])
    files = save_graphs([(name, model)], folder, name)[name]
    axes = Axes("fp32", "decomposed", tower.flavours[0].opset, moe=form.name)
    variant = Variant(name, "image", axes, files, tower.inputs, tower.outputs)
    engine = open_engine("onnxruntime-cpu", folder / files[0], variant, EngineOptions(threads=threads))

    def rows(pixels: Array) -> Array:
        slot = engine.slot(len(pixels), {"N": len(pixels)})
        slot.inputs["pixels"][:] = pixels
        found: Array = run(engine, slot)["embeddings"].copy()
        return found

    return rows


def looped(made: Source) -> Rows:
    """PyTorch's own forward."""
    tower = made.model.image
    assert tower is not None

    def rows(pixels: Array) -> Array:
        with torch.inference_mode():
            found: Array = F.normalize(tower(torch.from_numpy(pixels)), dim=-1).numpy()
        return found

    return rows


def take_turns(contestants: dict[str, Rows], pixels: Array, rounds: int) -> dict[str, float]:
    """Median milliseconds a call."""
    times: dict[str, list[float]] = {name: [] for name in contestants}
    for number in range(rounds + 1):
        for name, rows in contestants.items():
            start = time.perf_counter()
            rows(pixels)
            if number:  # the first round warms up
                times[name].append((time.perf_counter() - start) * 1e3)
    return {name: float(np.median(values)) for name, values in times.items()}


def measure(shape: str, args: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """One shape's rows."""
    mixture = source(shape, experts=EXPERTS)
    assert isinstance(mixture.model.image, ImageTower)
    assert mixture.preprocessing is not None
    config, experts = mixture.model.image.config, experts_of(mixture.model.image)
    assert experts is not None
    pixels = pixels_of(pictures_in(args.images)[: args.count], mixture.preprocessing)
    watching = watches([("image", mixture.model.image)])
    want, _ = source_rows(mixture, pixels, None, watching)
    assert want is not None
    routing = watching["image"].routing()
    places = {
        "capacity": replace(experts, capacities=capacities(routing, DROP)),
        "capacity, room for all": replace(experts, capacities=room_for_all(routing)),
    }
    taken = zip(routing.counts, places["capacity"].capacities, strict=True)
    dropped = sum(int(np.maximum(counts - np.asarray(most), 0).sum()) for counts, most in taken)
    # name -> (times 4 W that a token's feed-forward costs, form; sources of a graph's own are made when it is their turn: large ones fill the memory)
    rivals: dict[str, tuple[float, ExpertForm]] = {
        "dense tower": (1, DENSE),
        "dense tower, hidden x 2": (TOP_K, DENSE),
        "dense": (EXPERTS, DENSE),
        "gather": (TOP_K, ExpertForm("gather")),
    }
    for name, own in places.items():
        form = ExpertForm("capacity", dict(zip(own.blocks, own.capacities, strict=True)))
        rivals[name] = (TOP_K * factor(own, routing), form)
    rows: dict[str, dict[str, Any]] = {name: {"gmac": gmac(config, own)} for name, (own, _) in rivals.items()}
    rows["PyTorch's loop"] = {"gmac": gmac(config, TOP_K)}
    clear = ~routing.near_ties

    def contestant(name: str) -> Rows:
        if name not in rivals:
            return looped(mixture)
        made = mixture
        if name.startswith("dense tower"):
            made = source(shape, hidden=round(rivals[name][0]))
        opened = graph(made, f"graph{list(rows).index(name)}", rivals[name][1], folder, args.threads)
        if made is mixture:
            found = np.concatenate([opened(pixels[i : i + 1]) for i in range(len(pixels))])
            rows[name]["max_abs"] = float(np.abs(want - found)[clear].max())
            rows[name]["relative_distance"] = compared(want[clear], found[clear]).relative_distance
        return opened

    # the dense form beside one other at a time: the weights of more are more than a small machine holds
    dense = contestant("dense")
    for name in [name for name in rows if name != "dense"]:
        turns = {"dense": dense, name: contestant(name)}
        for batch in args.batches:
            times = take_turns(turns, pixels[:batch], args.rounds)
            for one in turns:
                if f"ms_batch_{batch}" in rows[one]:  # of the dense form the first turns'
                    continue
                share = rows[one]["gmac"] / rows["dense"]["gmac"]
                rows[one][f"ms_batch_{batch}"] = times[one]
                rows[one][f"as_fast_batch_{batch}"] = times["dense"] / times[one]
                rows[one][f"over_its_share_batch_{batch}"] = times[one] / times["dense"] / share
        del turns
        gc.collect()
    return {
        "shape": shape,
        "pictures": len(pixels),
        "near_ties": int(routing.near_ties.sum()),
        "factors": {name: factor(own, routing) for name, own in places.items()},
        "dropped": dropped / sum(int(counts.sum()) for counts in routing.counts),
        "peak_gb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6,
        "rows": rows,
    }


def table(found: dict[str, Any]) -> str:
    """One shape as Markdown."""
    batches, about = found["batches"], ", ".join(f"{key} {value}" for key, value in found["machine"].items())
    columns = "".join(f" batch {b}, ms | times as fast as dense | over its share |" for b in batches)
    lines = [
        f"## {found['shape']}: {EXPERTS} experts in every block, {TOP_K} to a token",
        "",
        f"{about}; onnxruntime-cpu, {found['threads']} threads, fp32, random weights, median of {found['rounds']} rounds that take turns.",
        "",
        f"| | GMAC |{columns} max abs to PyTorch | relative distance |",
        "|---|---|" + "---|---|---|" * len(batches) + "---|---|",
    ]
    for name, row in found["rows"].items():
        cells = [name, f"{row['gmac']:.1f}"]
        for b in batches:
            cells += [f"{row[f'ms_batch_{b}']:.0f}", f"{row[f'as_fast_batch_{b}']:.2f}"]
            cells += [f"{row[f'over_its_share_batch_{b}']:.2f}"]
        fit = "max_abs" in row
        cells += [f"{row['max_abs']:.1e}", f"{row['relative_distance']:.4f}"] if fit else ["-", "-"]
        lines.append("| " + " | ".join(cells) + " |")
    factors = found["factors"]
    lines += [
        "",
        f"{found['pictures']} photographs, {found['near_ties']} of them set aside for a token within 1e-5 of another choice. The capacity form has "
        f"{factors['capacity']:.2f} times the places that an average photograph needs, and {found['dropped']:.2%} of the choices found none; with room "
        f"for all it has {factors['capacity, room for all']:.2f} times. Peak memory of the comparison: {found['peak_gb']:.1f} GB.",
    ]
    return "\n".join(lines)


def main() -> None:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--shapes", nargs="+", choices=SHAPES, default=list(SHAPES))
    parser.add_argument("--images", type=Path, required=True, help="folder of photographs")
    parser.add_argument("--count", type=int, default=16, help="photographs to compare on")
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 8])
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("-o", "--output", type=Path, help="<output>.md and <output>.json")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    for shape in args.shapes:
        with tempfile.TemporaryDirectory(prefix="edgeclip-moe-") as scratch:
            found = measure(shape, args, Path(scratch))
        found |= {
            "machine": describe(),
            "threads": args.threads,
            "rounds": args.rounds,
            "batches": args.batches,
        }
        print(table(found), flush=True)
        if args.output:
            _write(args.output, found)


def _write(output: Path, found: dict[str, Any]) -> None:
    """Put one shape's figures beside those of the others that stand there."""
    record = output.with_suffix(".json")
    shapes = json.loads(record.read_text()) if record.is_file() else {}
    shapes[found["shape"]] = found
    record.write_text(json.dumps(shapes, indent=1) + "\n")
    text = "\n\n".join(["# Mixtures of experts in three forms", *map(table, shapes.values())])
    output.with_suffix(".md").write_text(text + "\n")


if __name__ == "__main__":
    main()
