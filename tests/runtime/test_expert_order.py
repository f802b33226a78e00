"""Which form of a mixture of experts is opened or built: exact before lossy, and what each engine computes best."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import pytest

import edgeclip
from edgeclip.bundle import Axes, Bundle, Experts, open_bundle, seal
from edgeclip.errors import EngineError
from edgeclip.runtime.expert_order import in_order, loses
from edgeclip.runtime.tensorrt.library import Library
from edgeclip.runtime.tensorrt.plan import jobs_for
from edgeclip.runtime.tensorrt.settings import BuildSettings
from edgeclip.runtime.towers import Tower
from tests.runtime.test_variants import opened
from tests.runtime.toy import make_bundle

EXPERTS = Experts((0,), (4,), 2)
TENSORRT = {"gather": "none", "dense": "10.3", "capacity": "10.3"}
LIBRARY = Library("tensorrt-rtx", ModuleType("no_library"), "1.7.1")


def mixed(folder: Path, forms: Sequence[str]) -> Bundle:
    """The toy, whose image tower is there once for each form, in this order."""
    made = make_bundle(folder)
    (image, text), graph = made.manifest.variants, made.root / made.manifest.variants[0].files[0]
    variants = []
    for form in forms:
        axes = Axes(moe=form)  # type: ignore[arg-type]
        name = f"graphs/{axes.name('image')}.onnx"
        (made.root / name).write_bytes(graph.read_bytes())
        own = replace(EXPERTS, dropped=0.0025) if form == "capacity" else EXPERTS
        variants.append(
            replace(
                image, id=axes.name("image"), axes=axes, files=(name,), experts=own, requires={"tensorrt": TENSORRT[form]}
            )
        )  # fmt: skip
    graph.unlink()
    seal(made.root, replace(made.manifest, variants=(*variants, text)))
    return open_bundle(made.root)


ALL = ("gather", "dense", "capacity")


@pytest.mark.parametrize(
    ("engine", "order"),
    [
        ("onnxruntime-cpu", ["gather", "dense", "capacity"]),
        ("onnxruntime-cuda", ["dense", "capacity", "gather"]),
        ("tensorrt", ["dense", "capacity", "gather"]),
        ("onnxruntime-tensorrt", ["dense", "capacity", "gather"]),
    ],
)
@pytest.mark.parametrize("forms", [ALL, ("capacity", "dense", "gather")])
def test_the_order_of_each_engine(
    engine: str, order: list[str], forms: Sequence[str], tmp_path: Path
) -> None:
    tower = Tower(mixed(tmp_path / "b", forms), "image")
    assert [variant.axes.moe for variant in tower._candidates(engine)] == order
    assert [variant.axes.moe for variant in in_order(tower.variants, engine)] == order


def test_a_variant_without_experts_and_what_was_proven_keep_their_places(tmp_path: Path) -> None:
    """Merged tokens stand behind the plain ones as the manifest has them; `proven` elsewhere is last all the same."""
    bundle = mixed(tmp_path / "b", ALL)
    gather, dense, capacity, text = bundle.manifest.variants
    merged = replace(dense, id="merged", axes=replace(dense.axes, token_merging=8))
    elsewhere = replace(gather, id="elsewhere", proven=("tensorrt",))
    variants = (elsewhere, gather, dense, capacity, merged, text)
    tower = Tower(replace(bundle, manifest=replace(bundle.manifest, variants=variants)), "image")
    found = [variant.id for variant in tower._candidates("onnxruntime-cpu")]
    assert found == [gather.id, dense.id, capacity.id, "merged", "elsewhere"]


def test_the_capacity_form_is_never_taken_in_silence(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    bundle = mixed(tmp_path / "b", ("capacity", "dense"))
    assert opened(bundle) == "image-fp32-dense"
    assert opened(bundle, variants=["image-fp32-capacity"]) == "image-fp32-capacity"
    assert "left out" not in caplog.text, "named, so it is meant"
    alone = mixed(tmp_path / "alone", ("capacity",))
    with caplog.at_level(logging.WARNING):
        assert opened(alone) == "image-fp32-capacity"
    assert "what finds no place is left out (0.25% of the choices when it was measured)" in caplog.text
    assert loses(bundle.manifest.variants[1]) == ""


def test_tensorrt_is_built_from_the_exact_form_that_it_reads(tmp_path: Path) -> None:
    settings = BuildSettings(precision="fp32", towers=("image",))

    def first(forms: Sequence[str], settings: BuildSettings = settings) -> list[str]:
        (job,) = jobs_for(mixed(tmp_path / "-".join(forms), forms), settings, LIBRARY, None)
        return [candidate.variant.id for candidate in job]

    assert first(ALL) == ["image-fp32-dense"]
    assert first(("gather", "capacity")) == ["image-fp32-capacity"]
    with pytest.raises(
        EngineError, match=r"reads none of image-fp32-gather\. The form gather has sizes that"
    ):
        first(("gather",))
    named = replace(settings, variants=("image-fp32-capacity",))
    (job,) = jobs_for(open_bundle(tmp_path / "-".join(ALL)), named, LIBRARY, None)
    assert [candidate.variant.id for candidate in job] == ["image-fp32-capacity"]


def test_a_graph_of_the_routing_is_not_built(tmp_path: Path) -> None:
    bundle = mixed(tmp_path / "b", ("dense",))
    dense, text = bundle.manifest.variants
    routing = replace(dense, id="routing", axes=replace(dense.axes, head="routing"))
    bundle = replace(bundle, manifest=replace(bundle.manifest, variants=(routing, dense, text)))
    jobs = jobs_for(bundle, BuildSettings(precision="fp32"), LIBRARY, None)
    assert [job[0].variant.id for job in jobs] == [dense.id, text.id]


def test_a_user_names_a_form(tmp_path: Path) -> None:
    bundle = mixed(tmp_path / "b", ALL)
    assert opened(bundle) == "image-fp32-gather"
    for form in ALL:
        assert opened(bundle, variants=[f"image-fp32-{form}"]) == f"image-fp32-{form}"
    with pytest.raises(
        edgeclip.EngineError, match="no variant 'image-fp32-sparse'; it has image-fp32-gather"
    ):
        edgeclip.load(bundle, variants=["image-fp32-sparse"])


def test_what_the_manifest_prefers_stays_before_other_forms_of_another_precision(tmp_path: Path) -> None:
    image = mixed(tmp_path / "bundle", ALL).manifest.variants[0]
    names = ["int8-dense", "fp32-capacity", "fp32-dense", "fp32-gather"]
    variants = [
        replace(image, id=name, axes=Axes(precision=name.split("-")[0], moe=name.split("-")[1]))  # type: ignore[arg-type]
        for name in names
    ]
    found = [one.id for one in in_order(variants, "onnxruntime-cpu")]
    assert found == ["int8-dense", "fp32-gather", "fp32-dense", "fp32-capacity"]
