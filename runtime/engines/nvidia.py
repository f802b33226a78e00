"""NVIDIA's driver and libraries as the dynamic linker finds them: no Python package of theirs is needed to ask."""

from __future__ import annotations

import contextlib
import ctypes
import io
import mmap
import re
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from edgeclip.errors import EngineError, MissingExtraError
from edgeclip.runtime.cuda import NODES

TENSORRT = ("nvinfer", "nvinfer_plugin", "nvonnxparser")  # each needs the ones before


def has_gpu() -> bool:
    """Whether the machine shows an NVIDIA device. Cheap: nothing is loaded."""
    return sys.platform == "win32" or any(Path(node).exists() for node in NODES)


def driver_cuda() -> tuple[int, int] | None:
    """The highest CUDA version, (major, minor), that the driver serves; None without a driver."""
    try:
        driver = ctypes.CDLL("libcuda.so.1")
    except OSError:
        return None
    version = ctypes.c_int()
    if driver.cuDriverGetVersion(ctypes.byref(version)) != 0:
        return None
    return version.value // 1000, version.value % 1000 // 10  # 12080 is 12.8


def check_driver(onnxruntime: Any) -> None:
    """Compare the CUDA that an onnxruntime was built with and the one that the driver serves.

    Raises:
        EngineError: no driver, or one too old.
    """
    built, served = getattr(onnxruntime, "cuda_version", "") or "", driver_cuda()
    if served is None:
        raise EngineError("no NVIDIA driver (libcuda.so.1 does not load). Install one, or run on the CPU.")
    if built and int(built.split(".")[0]) > served[0]:
        raise EngineError(
            f"onnxruntime-gpu {onnxruntime.__version__} was built with CUDA {built}, the driver serves up to "
            f"{served[0]}.{served[1]}. Update the driver, or run: {for_cuda(served[0])}"
        )


def for_cuda(major: int) -> str:
    """The command that installs onnxruntime for a driver. onnxruntime-gpu is built with CUDA 13 from 1.27 on, with 12 before."""
    return f"pip install 'onnxruntime-gpu[cuda,cudnn]{'<1.27' if major < 13 else ''}'"


def linked(library: Path, name: str) -> int | None:
    """The major version of another library that one was linked with: 10 for "nvinfer" and libnvinfer.so.10; None: it was not."""
    found = re.search(rb"lib%s\.so\.(\d+)\0" % name.encode(), library.read_bytes())
    return int(found[1]) if found else None


def preload(onnxruntime: Any, library: Path) -> list[str]:
    """Load the CUDA libraries that Python packages hold, as onnxruntime does it, which prints what it does not find.

    Args:
        library: whoever will need them.
    Returns:
        the files that `library` was linked with and that are nowhere.
    """
    if not hasattr(onnxruntime, "preload_dlls"):
        return []
    with contextlib.redirect_stdout(io.StringIO()) as said:  # stdout is the program's own
        onnxruntime.preload_dlls()
    absent = re.findall(r"Failed to load (\S+):", said.getvalue())
    if not absent or not library.exists():
        return []
    with library.open("rb") as stream, mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as content:
        return [Path(file).name for file in absent if content.find(b"\0%b\0" % Path(file).name.encode()) >= 0]


def load_tensorrt(major: int) -> str:
    """Load TensorRT's libraries for a program that was linked with them: of the package `tensorrt`, else the system's.

    Returns:
        the version, e.g. "10.3.0".
    Raises:
        MissingExtraError: this major version is not installed.
    """
    package = find_spec("tensorrt_libs")
    folders = [Path(place) for place in package.submodule_search_locations or ()] if package else []
    try:
        for name in TENSORRT:
            file = f"lib{name}.so.{major}"
            path = next((str(folder / file) for folder in folders if (folder / file).exists()), file)
            library = ctypes.CDLL(path, mode=ctypes.RTLD_GLOBAL)
            if name == TENSORRT[0]:
                version = library.getInferLibVersion()
    except OSError as error:
        raise MissingExtraError(
            f"TensorRT {major} is not installed ({error}). Run: pip install 'tensorrt=={major}.*', or on a Jetson: "
            "apt-get install tensorrt"
        ) from error
    return f"{version // 10000}.{version // 100 % 100}.{version % 100}"
