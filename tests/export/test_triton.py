"""Triton repositories: read by Triton's schema, held to the server's rules, and answered in the order that they say."""

from __future__ import annotations

import sys
import types
from dataclasses import replace
from importlib import metadata
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import edgeclip
from edgeclip import Bundle, LabelPack
from edgeclip.bundle import Fidelity, Scores, seal
from edgeclip.errors import BundleError, EngineError, InputError
from edgeclip.export import weights
from edgeclip.export.bake import bake
from edgeclip.export.triton import config, repository, scoring
from edgeclip.export.triton.config import TritonSettings
from edgeclip.export.triton.repository import write_repository
from edgeclip.runtime.cuda import Device
from edgeclip.runtime.engines import EngineOptions
from edgeclip.runtime.images import preprocess
from edgeclip.runtime.tensorrt.record import BuildOptions, NetworkReport, Record
from edgeclip.runtime.tensorrt.store import store_of
from tests.export.triton_stand_in import Refused, Server
from tests.mutants import broken
from tests.runtime.toy import make_bundle, picture

LABELS = ["a cat", "a dog", "a bicycle", "of a cat", "photo"]
CPU = TritonSettings(gpus=(), max_batch=4)
# float32 softmax of float32 logits against the runtime's float64: 1e-7 was seen; a bias left out moves 1e-2
SAME = 2e-6


@pytest.fixture(scope="module", params=["softmax", "sigmoid"])
def toy(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """The toy bundle of each family."""
    activation = request.param
    bias = 0.0 if activation == "softmax" else -1.5
    return make_bundle(tmp_path_factory.mktemp("toy") / "toy", activation=activation, logit_bias=bias)


@pytest.fixture(scope="module")
def pack(toy: Bundle) -> LabelPack:
    with edgeclip.load(toy) as model:
        return model.make_labels(LABELS)


def classified(bundle: Bundle, count: int = 3) -> np.ndarray[Any, Any]:
    """(N, P) scores of `Model.classify`, columns in the order of LABELS."""
    with edgeclip.load(bundle, decode="exact") as model:
        labels = None if model.labels else LABELS
        found = model.classify([picture(seed) for seed in range(count)], labels)
        order = list(model.labels or LABELS)
    return np.array([[dict(result.ranked())[label] for label in order] for result in found])


def pixels_of(bundle: Bundle, count: int = 3) -> np.ndarray[Any, Any]:
    spec = bundle.manifest.preprocessing
    assert spec is not None
    return np.stack([preprocess(picture(seed), spec) for seed in range(count)])


def ids_of(bundle: Bundle) -> np.ndarray[Any, Any]:
    with edgeclip.load(bundle) as model:
        return model.encode_texts(
            [bundle.manifest.templates[0].replace("{}", label) for label in LABELS]
        ).input_ids


def test_ensembles_score_as_classify_does(toy: Bundle, pack: LabelPack, tmp_path: Path) -> None:
    made = write_repository(toy, tmp_path / "repository", replace(CPU, max_texts=8), pack)
    server, pixels, want = Server(made.path), pixels_of(toy), classified(toy)
    for answer in (
        server.infer("zero_shot", pixels=pixels, input_ids=ids_of(toy)),  # 3 pictures, 5 texts
        server.infer("zero_shot_prompts", pixels=pixels, prompt_embeddings=pack.vectors),
        server.infer("classifier", pixels=pixels),
    ):
        np.testing.assert_allclose(answer["scores"], want, rtol=0, atol=SAME)
    one = server.infer("zero_shot", pixels=pixels[:1], input_ids=ids_of(toy)[:1])
    assert one["scores"].shape == (1, 1)
    names = (made.path / "label_head/labels.txt").read_text().splitlines()
    assert names == LABELS
    assert [model.name for model in made.models] == [
        "image", "text", "score", "zero_shot", "zero_shot_prompts", "label_head", "classifier",
    ]  # fmt: skip


def test_requests_beyond_the_bounds_are_refused(toy: Bundle, tmp_path: Path) -> None:
    server = Server(write_repository(toy, tmp_path / "r", replace(CPU, max_batch=2, max_texts=4)).path)
    with pytest.raises(Refused, match=r"image: batches \{3\}, at most 2"):
        server.infer("zero_shot", pixels=pixels_of(toy), input_ids=ids_of(toy)[:4])
    with pytest.raises(Refused, match=r"text: batches \{5\}, at most 4"):
        server.infer("zero_shot", pixels=pixels_of(toy, 2), input_ids=ids_of(toy))
    with pytest.raises(Refused, match="pixels: expected"):
        server.infer("image", pixels=pixels_of(toy)[:, :, :8])


def test_baked_bundles(toy: Bundle, pack: LabelPack, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also: weights beside the graph are found where the backend opens it."""
    monkeypatch.setattr(weights, "EMBED_BELOW", 0)
    shop = bake(toy, tmp_path / "shop", pack, only_heads=True, drop_text=True).bundle
    made = write_repository(shop, tmp_path / "repository", CPU)
    assert [model.name for model in made.models] == ["classifier", "prompts"]
    assert [path.suffix for path in sorted((made.path / "classifier/1").iterdir())] == [".bin", ".onnx"]
    server, pixels, want = Server(made.path), pixels_of(toy), classified(toy)
    answer = server.infer("classifier", pixels=pixels)
    np.testing.assert_allclose(answer["scores"], want, rtol=0, atol=SAME)
    rows, mask = pack.vectors[None], np.ones((1, len(LABELS)), bool)
    open_to_all = server.infer("prompts", pixels=pixels, prompt_embeddings=rows, prompt_mask=mask)
    np.testing.assert_allclose(open_to_all["logits"], answer["logits"], rtol=0, atol=1e-4)
    assert (made.path / "classifier/labels.txt").read_text().splitlines() == LABELS


def test_scores_fitted_for_one_variant_are_served(tmp_path: Path) -> None:
    plain = make_bundle(tmp_path / "toy")
    image, text = plain.manifest.variants
    fitted = replace(plain.manifest, variants=(replace(image, scores=Scores(3.0, 0.5)), text), files={})
    bundle = seal(plain.root, fitted)
    server = Server(write_repository(bundle, tmp_path / "r", CPU).path)
    found = server.infer("zero_shot", pixels=pixels_of(bundle), input_ids=ids_of(bundle))
    np.testing.assert_allclose(found["scores"], classified(bundle), rtol=0, atol=SAME)


def test_one_tower_alone(tmp_path: Path) -> None:
    for name, options in (("texts", {"image": False}), ("pictures", {"text": False})):
        bundle = make_bundle(tmp_path / name, **options)
        made = write_repository(bundle, tmp_path / f"{name}-repository", CPU)
        server = Server(made.path)
        assert ("text" in server.models, "image" in server.models) == (name == "texts", name == "pictures")
        assert "zero_shot" not in server.models


def test_nano_and_a_prefix(tmp_path: Path) -> None:
    nano = edgeclip.open_bundle("nano")
    made = write_repository(
        nano, tmp_path / "r", replace(CPU, prefix="n_", precision="fp16", threads=2, queue=0)
    )
    server = Server(made.path)
    assert all(name.startswith("n_") for name in server.models)
    found = server.infer("n_zero_shot", pixels=pixels_of(nano), input_ids=ids_of(nano))
    if len(nano.manifest.templates) == 1:
        np.testing.assert_allclose(found["scores"], classified(nano), rtol=0, atol=SAME)
    image = server.models["n_image"].config
    assert not image.dynamic_batching.HasField("default_queue_policy")
    assert image.parameters["intra_op_thread_count"].string_value == "2"


def test_settings_reach_the_server(toy: Bundle, tmp_path: Path) -> None:
    settings = TritonSettings(
        gpus=(1, 3), instances=2, delay_us=500, queue=7, max_batch=16, accelerator="tensorrt"
    )
    server = Server(write_repository(toy, tmp_path / "r", settings).path)
    image, text = server.models["image"].config, server.models["text"].config
    (group,) = image.instance_group
    assert (group.count, list(group.gpus), group.kind) == (2, [1, 3], server.pb.ModelInstanceGroup.KIND_GPU)
    batching = image.dynamic_batching
    assert list(batching.preferred_batch_size) == [16]
    assert batching.max_queue_delay_microseconds == 500
    policy = batching.default_queue_policy
    assert (policy.max_queue_size, policy.timeout_action) == (7, server.pb.ModelQueuePolicy.REJECT)
    assert [sample.batch_size for sample in image.model_warmup] == [1, 16]
    assert [sample.batch_size for sample in text.model_warmup] == [1], "256 texts would only delay the start"
    (one,) = text.optimization.execution_accelerators.gpu_execution_accelerator
    assert dict(one.parameters) == {
        "trt_profile_min_shapes": "input_ids:1x1",
        "trt_profile_opt_shapes": "input_ids:256x12",
        "trt_profile_max_shapes": "input_ids:256x12",
    }
    (head,) = server.models["score"].config.instance_group
    assert (head.count, list(head.gpus), head.kind) == (2, [], server.pb.ModelInstanceGroup.KIND_CPU)


@pytest.mark.parametrize(
    ("home", "name", "old", "new"),
    [
        (scoring, "scoring_graph", "scores.logit_bias", "0.0"),
        (scoring, "scoring_graph", '"alpha": scores.logit_scale', '"alpha": 1.0'),
        (scoring, "scoring_graph", '"transB": 1', '"transB": 0'),
        (config, "ensemble_config", '"max_batch_size": max_batch', '"max_batch_size": 4'),
        (config, "_port", "port.shape[1:] if max_batch", "port.shape if max_batch"),
        (config, "_size", "known.get(size, 1)", "-1"),
        (config, "_port", '[port.dtype]', '["int64"]'),
        (config, "model_config", "sorted({*preferred}", "sorted({99, *preferred}"),
        (repository, "_label_file", "for label in labels", "for label in labels[1:]"),
    ],
)  # fmt: skip
def test_planted_faults_are_seen(
    home: Any, name: str, old: str, new: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    toy = make_bundle(tmp_path / "toy", activation="sigmoid", logit_bias=-1.5)
    mutant = broken(getattr(home, name), old, new)
    for user in (home, repository):
        if hasattr(user, name):
            monkeypatch.setattr(user, name, mutant)
    with edgeclip.load(toy) as model:
        pack = model.make_labels(LABELS)

    def serve() -> None:
        server = Server(write_repository(toy, tmp_path / "r", CPU, pack).path)
        answer = server.infer("zero_shot", pixels=pixels_of(toy), input_ids=ids_of(toy))
        np.testing.assert_allclose(answer["scores"], classified(toy), rtol=0, atol=SAME)

    with pytest.raises((AssertionError, Refused)):
        serve()


def test_strings_are_written_as_the_schema_reads_them() -> None:
    from google.protobuf import text_format

    from tests.export.triton_stand_in import schema

    name = 'a "quoted" \\ name, é'
    text = config.pbtxt({"name": name, "max_batch_size": 3, "input": [{"name": "x", "dims": [1, -1]}]})
    found = text_format.Parse(text, schema().ModelConfig())
    assert (found.name, list(found.input[0].dims)) == (name, [1, -1])


# --- TensorRT engines

DEVICE = Device(0, "NVIDIA L4", (8, 9), 24 << 30, "13.0")
GOOD = Fidelity(8, 1e-4, 1.0, 1.0, 1.0, 1e-3, 1.0)
SPANS = ({"N": (1, 4, 8)}, {"N": (1, 16, 32)})


def put_engine(bundle: Bundle, tower: str, folder: Path, **changes: Any) -> Record:
    """An engine in the store that nobody could run: the repository only carries it."""
    variant = bundle.manifest.variants_of(tower)[0]
    options = changes.pop("options", None) or BuildOptions(
        tuple({**span, **({"L": (1, 8, 12)} if tower == "text" else {})} for span in SPANS)
    )
    facts: dict[str, Any] = {
        "library": "tensorrt", "version": "10.16.1.11", "platform": "", "device": DEVICE, "bundle": bundle.digest,
        "variant": variant, "graphs": {name: bundle.manifest.files[name].sha256 for name in variant.files},
        "options": options, "size": 0, "sha256": "", "network": NetworkReport(1, {}, {}, 0, {}), "fidelity": GOOD,
    }  # fmt: skip
    return store_of(bundle, EngineOptions(engines=folder)).put(
        Record(**{**facts, **changes}), f"plan of {tower}".encode()
    )


@pytest.fixture
def bundle(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Bundle:
    monkeypatch.setenv("EDGECLIP_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    return make_bundle(tmp_path / "toy")


def test_engines_are_served_as_they_were_built(bundle: Bundle, tmp_path: Path) -> None:
    from google.protobuf import text_format

    from tests.export.triton_stand_in import schema

    folder, pb = tmp_path / "engines", schema()
    put_engine(bundle, "image", folder)
    put_engine(bundle, "text", folder)
    settings = TritonSettings(backend="tensorrt", engines=folder, cuda_graphs=True, max_batch=64)
    made = write_repository(bundle, tmp_path / "r", settings)
    assert (made.path / "image/1/model.plan").read_bytes() == b"plan of image"
    image, text = (
        text_format.Parse((made.path / name / "config.pbtxt").read_text(), pb.ModelConfig())
        for name in ("image", "text")
    )
    assert (image.platform, image.backend, image.max_batch_size) == ("tensorrt_plan", "tensorrt", 32)
    assert list(image.instance_group[0].profile) == ["0", "1"]
    assert list(image.dynamic_batching.preferred_batch_size) == [4, 16, 32]
    assert image.optimization.cuda.graphs
    assert not text.optimization.cuda.graphs, "texts of any length have no graph of one shape"
    assert list(text.model_warmup[0].inputs["input_ids"].dims) == [8], "within the engine's profile"
    assert any(
        "image-fp32 needs a Triton with TensorRT 10.16.1.11 exactly, on NVIDIA L4 (sm89)" in n
        for n in made.notes
    )
    score = (made.path / "score/config.pbtxt").read_text()
    assert 'backend: "onnxruntime"' in score


def test_engines_that_cannot_be_served(bundle: Bundle, tmp_path: Path) -> None:
    folder = tmp_path / "engines"
    settings = TritonSettings(backend="tensorrt", engines=folder)

    def refused() -> str:
        with pytest.raises((EngineError, InputError)) as error:
            write_repository(bundle, tmp_path / "r", settings)
        assert not (tmp_path / "r").exists()
        return str(error.value)

    put_engine(bundle, "image", folder, library="tensorrt-rtx", version="1.7.1.116")
    said = "no TensorRT engine of the image tower was built on this machine (one for TensorRT-RTX is not for Triton). Run: edgeclip build"
    assert said in refused()
    put_engine(bundle, "image", folder, fidelity=None)
    assert "was never replayed on a GPU" in refused()
    put_engine(bundle, "image", folder, options=BuildOptions(({"N": (4, 8, 16)},)))
    assert "takes no batch of 1" in refused()
    put_engine(bundle, "image", folder, options=BuildOptions(SPANS, strip_weights=True))
    assert "holds no weights" in refused()
    put_engine(bundle, "image", folder, options=BuildOptions(SPANS, version_compatible=True))
    assert "no TensorRT engine of the text tower" in refused()
    record = put_engine(bundle, "text", folder)
    settings = replace(settings, precision="int8")
    assert "no image tower in int8; it has fp32" in refused()
    settings = replace(settings, precision=None)
    plan = store_of(bundle, EngineOptions(engines=folder)).plan_path(record)
    plan.write_bytes(plan.read_bytes()[:-1] + b"?")
    assert refused().startswith(f"{plan}: ")
    assert "edgeclip build" in refused()


def test_files_that_changed_meanwhile(bundle: Bundle, tmp_path: Path) -> None:
    graph = bundle.path("graphs/image-fp32.onnx")
    graph.write_bytes(graph.read_bytes()[:-1] + b"?")
    with pytest.raises(BundleError, match="was changed or damaged, its SHA-256 is not the manifest's"):
        write_repository(bundle, tmp_path / "r", CPU)
    assert not (tmp_path / "r").exists()


def test_large_requests_are_announced(tmp_path: Path) -> None:
    nano = edgeclip.open_bundle("nano")
    made = write_repository(nano, tmp_path / "r", replace(CPU, max_batch=2048))
    assert any("--http-max-input-size=" in note for note in made.notes)


# --- the client of the examples


def load_file(name: str, path: Path) -> types.ModuleType:
    spec = spec_from_file_location(name, path)
    assert spec is not None
    assert spec.loader is not None
    module = module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


def test_client(toy: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The example with tritonclient's own request objects; only the wire, which wants gevent, is taken out."""
    from PIL import Image

    server = Server(write_repository(toy, tmp_path / "r", CPU).path)
    root = Path(str(metadata.distribution("tritonclient").locate_file("tritonclient")))
    for name in (
        "tritonclient.http",
        "tritonclient.http._infer_input",
        "tritonclient.http._requested_output",
        "client",
    ):
        monkeypatch.delitem(sys.modules, name, raising=False)
        monkeypatch.setitem(sys.modules, name, types.ModuleType(name))
    http = sys.modules["tritonclient.http"]
    for file, cls in (("_infer_input", "InferInput"), ("_requested_output", "InferRequestedOutput")):
        setattr(http, cls, getattr(load_file(f"tritonclient.http.{file}", root / f"http/{file}.py"), cls))
    client = load_file("client", Path(__file__).parents[2] / "examples/triton_client.py")

    class Wire:
        def infer(self, model: str, inputs: list[Any], outputs: list[Any]) -> Any:
            dtypes = {"FP32": np.float32, "INT32": np.int32}
            given = {
                one.name(): np.frombuffer(one._get_binary_data(), dtypes[one.datatype()]).reshape(one.shape())
                for one in inputs
            }
            found = server.infer(model, **given)
            assert outputs[0].name() in found
            return types.SimpleNamespace(as_numpy=found.__getitem__)

    files = []
    for seed in range(3):
        files.append(tmp_path / f"{seed}.png")
        Image.fromarray(picture(seed)).save(files[-1])
    vectors = client.label_vectors(Wire(), toy, LABELS)
    found = client.scores(Wire(), toy, [str(path) for path in files], vectors)
    np.testing.assert_allclose(found, classified(toy), rtol=0, atol=1e-4)  # decoded fast
