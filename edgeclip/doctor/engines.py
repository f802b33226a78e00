"""Each engine: whether it can run here, and the command for what is missing; and the engines that were built."""

from __future__ import annotations

from typing import Any

from edgeclip.doctor.finding import Finding, version_of
from edgeclip.doctor.gpu import is_jetson
from edgeclip.errors import EdgeClipError, EngineError
from edgeclip.files import cache_folder
from edgeclip.runtime.engines import nvidia, onnxruntime_cuda, onnxruntime_tensorrt, onnxruntime_tensorrt_rtx

KEEP_ONE = "pip uninstall -y onnxruntime onnxruntime-gpu && pip install 'edgeclip[gpu]'"
TENSORRT = ("tensorrt", "tensorrt-cu13", "tensorrt-cu12")
TENSORRT_RTX = ("tensorrt-rtx", "tensorrt-rtx-cu13", "tensorrt-rtx-cu12")
NO_GPU = "; it needs an NVIDIA GPU to run"


def look() -> list[Finding]:
    """A line for each engine, then the key and the engines of this machine."""
    return [*_onnxruntime(), _plug_in(), *_tensorrt(), _bindings(), _key(), _built()]


def _needed() -> str:
    return "" if nvidia.has_gpu() else NO_GPU


def _onnxruntime() -> list[Finding]:
    cpu, cuda = "engine onnxruntime-cpu", "engine onnxruntime-cuda"
    installed = [name for name in ("onnxruntime", "onnxruntime-gpu") if version_of(name)]
    if not installed:
        return [Finding(cpu, False, "onnxruntime is not installed", "pip install 'edgeclip[cpu]'")]
    try:
        import onnxruntime

        providers = onnxruntime.get_available_providers()
    except Exception as error:  # a broken wheel raises whatever it likes
        fix = KEEP_ONE if len(installed) == 2 else f"pip install --force-reinstall {installed[0]}"
        return [Finding(cpu, False, f"does not import: {error}", fix)]
    found = [Finding(cpu, True, f"onnxruntime {version_of(installed[0])}")]
    if len(installed) == 2:
        reason = "onnxruntime and onnxruntime-gpu share one folder; keep one of them"
        return [*found, Finding(cuda, False, reason, KEEP_ONE)]
    if onnxruntime_cuda.PROVIDER not in providers:
        fix = "pip uninstall -y onnxruntime && pip install 'edgeclip[gpu]' 'onnxruntime-gpu[cuda,cudnn]'"
        reason = "this onnxruntime has no CUDA provider (needs an NVIDIA GPU)"
        return [*found, Finding(cuda, False, reason, fix)]
    found.append(_with_driver(cuda, onnxruntime))
    if onnxruntime_tensorrt.PROVIDER in providers:
        found.append(_provider(onnxruntime))
    return found


def _with_driver(topic: str, onnxruntime: Any) -> Finding:
    built = getattr(onnxruntime, "cuda_version", "") or "not known"
    if not nvidia.has_gpu():
        return Finding(topic, True, f"built in, for CUDA {built}{NO_GPU}")
    try:
        nvidia.check_driver(onnxruntime)
    except EngineError as error:
        served = nvidia.driver_cuda()
        return Finding(topic, False, str(error), nvidia.for_cuda(served[0]) if served else "")
    return Finding(topic, True, f"built in, for CUDA {built}, which the driver serves")


def _provider(onnxruntime: Any) -> Finding:
    """onnxruntime's own TensorRT, which wants the release that it was linked with."""
    topic = "engine onnxruntime-tensorrt"
    library = onnxruntime_cuda.provider_library(onnxruntime, onnxruntime_tensorrt.PROVIDER)
    try:
        major = nvidia.linked(library, "nvinfer")
    except OSError:
        major = None
    if major is None:
        return Finding(topic, False, "listed by onnxruntime, but its library is missing", KEEP_ONE)
    if (version := version_of(*TENSORRT)) is None or int(version.split(".")[0]) != major:
        reason = f"needs TensorRT {major}, {version or 'none'} is installed"
        return Finding(topic, False, reason, f"pip install 'tensorrt=={major}.*'")
    return Finding(topic, True, f"built in; TensorRT {version}{_needed()}")


def _plug_in() -> Finding:
    topic = "engine onnxruntime-tensorrt-rtx"
    names = [f"onnxruntime-ep-nv-tensorrt-rtx{cuda}" for cuda in ("-cu13", "-cu12")]
    if (version := version_of(*names)) is None:
        return Finding(
            topic, False, f"the plug-in is not installed{_needed()}", onnxruntime_tensorrt_rtx.INSTALL
        )
    return Finding(topic, True, f"plug-in {version}{_needed()}")


def _tensorrt() -> list[Finding]:
    from edgeclip.runtime.engines import tensorrt, tensorrt_rtx

    own = "sudo apt-get install python3-libnvinfer && " if is_jetson() else ""
    wanted = (
        (tensorrt, TENSORRT, f"{own}pip install {'' if own else 'tensorrt '}'edgeclip[tensorrt]'"),
        (tensorrt_rtx, TENSORRT_RTX, "pip install 'edgeclip[tensorrt-rtx]'"),
    )
    found = []
    for module, packages, command in wanted:
        topic = f"engine {module.NAME}"
        if (version := version_of(*packages)) is None:
            found.append(Finding(topic, False, f"{module.NAME} is not installed{_needed()}", command))
        elif nvidia.has_gpu():
            missing = "" if module.present() else "; cuda-bindings is missing, see below"
            found.append(Finding(topic, not missing, f"{module.NAME} {version}{missing}"))
        else:
            ahead = ", it builds ahead of time for others" if module is tensorrt_rtx else ""
            found.append(Finding(topic, True, f"{module.NAME} {version}{NO_GPU}{ahead}"))
    return found


def _bindings() -> Finding:
    if version := version_of("cuda-bindings"):
        return Finding("cuda-bindings", True, version)
    served = nvidia.driver_cuda()
    return Finding(
        "cuda-bindings", False, "not installed; TensorRT engines run through it",
        f"pip install 'cuda-bindings=={served[0]}.*'" if served else "pip install 'cuda-bindings>=12.6'",
    )  # fmt: skip


def _key() -> Finding:
    from edgeclip.runtime.tensorrt.key import key_path, machine_key

    path = key_path()
    if not path.exists() and not path.is_symlink():
        return Finding("engine key", True, f"none yet; {path} is made with the first engine")
    try:
        machine_key()
    except EdgeClipError as error:
        return Finding("engine key", False, str(error))
    return Finding("engine key", True, str(path))


def _built() -> Finding:
    from edgeclip.runtime.tensorrt.store import Store

    try:
        stores = [Store(folder) for folder in cache_folder().glob("*/engines")]
    except OSError as error:
        return Finding("engines", True, f"the cache cannot be read ({error.strerror or error})")
    kept = [record for store in stores for record in store.records()]
    damaged = sum(len(store.problems()) for store in stores)
    size = sum(record.size for record in kept) / 1e6
    detail = f"{len(kept)} built, for {len({record.bundle for record in kept})} bundle(s), {size:.0f} MB"
    if damaged:
        return Finding(
            "engines", False, f"{detail}; {damaged} cannot be used", "edgeclip build BUNDLE --list"
        )
    return Finding("engines", True, detail if kept else "none was built")
