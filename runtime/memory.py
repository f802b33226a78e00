"""How much memory a tower will take, before it is loaded.

Measured on onnxruntime 1.32, x86-64, CPU engine (docs/runtime.md): the process without a model, then the weights once (packed
copies replace the originals), then buffers. fp16 weights are widened to fp32 beside the originals.
"""

from __future__ import annotations

from pathlib import Path

from edgeclip.bundle import Bundle, Variant

PROCESS_BYTES = 40 << 20  # Python, numpy, Pillow, onnxruntime
BUFFER_BYTES = 24 << 20  # what onnxruntime needs beside weights, at batch 1
_WEIGHTS_FACTOR = {"fp32": 1.0, "fp16": 3.0, "bf16": 3.0, "int8": 1.1, "fp8": 1.1, "int4": 1.1}


def estimate_memory(bundle: Bundle, variant: Variant) -> int:
    """Bytes of resident memory that loading one variant adds to the process, at batch 1 on the CPU engine.

    Within 10 % for the image tower of a ViT-B/32. Too high for text towers, by the part of the token table that is never read:
    external data is mapped, not copied, and its unused pages are never loaded.
    """
    weights = sum(bundle.manifest.files[name].size for name in variant.files)
    return int(weights * _WEIGHTS_FACTOR[variant.axes.precision]) + BUFFER_BYTES


def available_memory() -> int | None:
    """Bytes that this machine can still give to processes; None where the system does not say."""
    try:
        for line in Path("/proc/meminfo").read_text().splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    except (OSError, ValueError, IndexError):
        pass
    return None
