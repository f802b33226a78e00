"""What the onnxruntime engines share: importing it, opening a session, and reading back what really runs."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from edgeclip.bundle.manifest import Variant
from edgeclip.errors import EngineError, MissingExtraError
from edgeclip.runtime.engines.seam import EngineOptions

log = logging.getLogger(__name__)


def load_onnxruntime(extra: str) -> Any:
    """The module. Raises MissingExtraError with the command that installs it."""
    try:
        import onnxruntime
    except ImportError as error:
        raise MissingExtraError(
            f"onnxruntime is not installed ({error}). Run: pip install 'edgeclip[{extra}]'"
        ) from error
    return onnxruntime


def open_session(
    path: Path,
    variant: Variant,
    options: EngineOptions,
    provider: str,
    provider_options: Mapping[str, str],
    threads: int,
    *,
    install: str,
) -> Any:
    """An InferenceSession whose first provider is the one that was asked for.

    Args:
        provider: onnxruntime's name of it.
        threads: of one operator on the CPU.
        install: the extra that brings this provider.
    Raises:
        EngineError: too old an onnxruntime, a graph that it cannot open, a graph that is not what the manifest says, or
            another provider than asked for (unless `options.allow_fallback`).
        MissingExtraError: onnxruntime is not installed.
    """
    onnxruntime = load_onnxruntime(install)
    wanted = variant.requires.get("onnxruntime", "0")
    if _version(onnxruntime.__version__) < _version(wanted):
        raise EngineError(
            f"{variant.id}: needs onnxruntime {wanted}, this is {onnxruntime.__version__}. Run: pip install -U onnxruntime"
        )
    settings = _session_options(onnxruntime, options, threads)
    try:
        session = onnxruntime.InferenceSession(
            str(path), settings, providers=[(provider, {**provider_options, **options.provider_options})]
        )
    except Exception as error:  # onnxruntime's errors have no common base
        raise EngineError(f"{path}: onnxruntime cannot open it ({first_line(error)}).") from error
    _check_provider(session, variant, provider, options)
    _check_ports(session, variant, path)
    return session


def first_line(error: Exception) -> str:
    """The message without the traceback that onnxruntime appends."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def _session_options(onnxruntime: Any, options: EngineOptions, threads: int) -> Any:
    settings = onnxruntime.SessionOptions()
    settings.intra_op_num_threads = threads
    settings.inter_op_num_threads = 1  # the towers are chains: nothing runs side by side
    settings.execution_mode = onnxruntime.ExecutionMode.ORT_SEQUENTIAL
    settings.enable_cpu_mem_arena = options.arena
    settings.enable_mem_pattern = options.arena
    settings.log_severity_level = 3  # errors only: warnings would go to the host program's stderr
    settings.add_session_config_entry("session.intra_op.allow_spinning", "1" if options.spinning else "0")
    # Spinning pays between the operators of one run; beyond it, it takes cores from decoding the next picture.
    settings.add_session_config_entry("session.intra_op.spin_duration_us", "200")
    settings.add_session_config_entry("session.disable_prepacking", "0" if options.prepacking else "1")
    for key, value in options.session_options.items():
        settings.add_session_config_entry(key, value)
    return settings


def _check_provider(session: Any, variant: Variant, provider: str, options: EngineOptions) -> None:
    used = session.get_providers()[0]
    if used == provider:
        return
    if not options.allow_fallback:
        raise EngineError(
            f"{variant.id}: asked for {provider}, onnxruntime fell back to {used}. See `edgeclip doctor` for what is missing, "
            "or pass allow_fallback=True to accept it."
        )
    log.warning("%s: runs on %s instead of %s", variant.id, used, provider)


def _check_ports(session: Any, variant: Variant, path: Path) -> None:
    """The buffers are sized by the manifest, so the graph must agree with it before a byte is written."""
    for kind, ports, found in (
        ("input", variant.inputs, session.get_inputs()),
        ("output", variant.outputs, session.get_outputs()),
    ):
        shapes = {node.name: (_DTYPES.get(node.type, node.type), node.shape) for node in found}
        for port in ports:
            dtype, shape = shapes.get(port.name, (None, []))
            # a symbolic size must be one in the graph too: an export that baked its batch runs at that batch only
            same = len(shape) == len(port.shape) and all(
                size == wanted if isinstance(wanted, int) else not isinstance(size, int)
                for size, wanted in zip(shape, port.shape, strict=True)
            )
            if dtype != port.dtype or not same:
                raise EngineError(
                    f"{path}: {kind} {port.name!r}: the manifest says {port.dtype} {port.shape}, the graph has {dtype} {shape}."
                )
        if kind == "input" and len(shapes) != len(ports):
            raise EngineError(
                f"{path}: the graph has inputs {sorted(shapes)}, the manifest lists {[port.name for port in ports]}."
            )


_DTYPES = {
    "tensor(float)": "float32",
    "tensor(float16)": "float16",
    "tensor(int32)": "int32",
    "tensor(int64)": "int64",
    "tensor(uint8)": "uint8",
    "tensor(bool)": "bool",
}


def _version(text: str) -> tuple[int, ...]:
    """(major, minor, ...) up to the first part that is no number."""
    parts: list[int] = []
    for part in text.split("."):
        if not part.isdigit():
            break
        parts.append(int(part))
    return tuple(parts)
