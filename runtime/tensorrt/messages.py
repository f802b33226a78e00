"""What TensorRT says: one logger for the process, its errors as one line of words, and its own writing kept off the screen."""

from __future__ import annotations

import contextlib
import logging
import os
import re
import sys
import threading
from collections.abc import Iterator, Sequence
from typing import Any

from edgeclip.errors import EngineError
from edgeclip.runtime.tensorrt.library import Library

_log = logging.getLogger(__name__)
_loggers: dict[str, Any] = {}
_listeners: list[list[str]] = []
_guard = threading.Lock()

# Patterns of what TensorRT says -> what to do. The first that fits.
_ADVICE: Sequence[tuple[str, str]] = (
    (r"cudaError 35|CUDA initialization|CUDA_SUCCESS|no CUDA-capable|accelerator list|factory function returned nullptr",
     "This needs an NVIDIA GPU and its driver."),
    (r"dedicated kernel", "Build the variant with decomposed attention (--variant)."),
    (r"within workspace limit", "Give a larger --workspace, or a smaller --batch."),
    (r"[Oo]ut of [Mm]emory|insufficient memory|MEM_ALLOC|bad_alloc",
     "Close other programs, or build with --low-memory or a smaller --batch."),
    (r"Turing|SM75", "Leave sm75 out, or build in fp16."),
    (r"Could not find any implementation", "Give a larger --workspace or a higher --level, or build the variant with decomposed attention (--variant)."),
    (r"weights? file|external data|Failed to open|import initializer", "The file beside the graph that holds its weights is missing or damaged."),
)  # fmt: skip

# "Error Code 1: Myelin (what went wrong)", and what stands around the words: functions, files and lines of TensorRT's source,
# failed conditions, addresses of its manual.
_CODED = re.compile(r"Error Code \d+: ([\w ]+?) \((.*)\)\s*$")
_NOISE = re.compile(
    r"MyelinCheckException: |\[?\b\w+\.(?:cpp|h|hpp):\d+(?:: [\w()]+\])?:? ?|CHECK\(.*?\) failed\. +|In \w+ at \S+\.(?:cpp|h|hpp):\d+ ?"
    r"|^.*Assertion failed: .*?: (?=[A-Z])|\(See https?://.*?\)\.?|Alternatively, padded attention.*|Consider increase.*?applicable\.;?"
)


def logger_of(library: Library) -> Any:
    """The ILogger of a library. One for the process: TensorRT keeps the first it is given and passes over every later one."""
    with _guard:
        if library.name not in _loggers:
            _loggers[library.name] = _make(library.module)
        return _loggers[library.name]


@contextlib.contextmanager
def listening() -> Iterator[list[str]]:
    """The errors that TensorRT reports meanwhile, from any thread, oldest first."""
    heard: list[str] = []
    with _guard:
        _listeners.append(heard)
    try:
        yield heard
    finally:
        with _guard:
            _listeners[:] = [other for other in _listeners if other is not heard]


def in_words(errors: Sequence[str], otherwise: str) -> str:
    """The first error in one line, without names of TensorRT's own source, and what to do about it.

    Args:
        errors: as TensorRT said them.
        otherwise: what to do where no rule knows better.
    """
    said = errors[0] if errors else "it gave no reason"
    coded = _CODED.search(said)
    text = " ".join(_NOISE.sub("", coded[2] if coded else said).split()).strip(" .;")
    if not text:  # nothing but a failed condition
        bare = re.search(r"CHECK\(.*?\) failed", said)
        text = bare[0] if bare else said
    advice = next((advice for pattern, advice in _ADVICE if re.search(pattern, " ".join(errors))), otherwise)
    return f"{text}. {advice}"


def made(library: Library, kind: str, heard: Sequence[str], *arguments: Any) -> Any:
    """An object of one of the library's classes, given to it with the process's logger.

    Args:
        kind: name of the class, e.g. "Runtime".
        heard: of `listening`.
    Raises:
        EngineError: TensorRT makes none, as without a driver.
    """
    try:
        return getattr(library.module, kind)(*arguments, logger_of(library))
    except TypeError as error:  # what pybind makes of a null pointer
        said = in_words([*heard, str(error)], "See `edgeclip doctor`.")
        raise EngineError(f"{library}: its {kind} cannot start. {said}") from error


@contextlib.contextmanager
def hushed() -> Iterator[None]:
    """Keep lines that TensorRT's compiler writes to the process's stderr by itself out of it; all others pass.

    TensorRT-RTX 1.7 writes "Internal Error: MyelinCheckException ..." there beside logging it. Meanwhile Python's own
    `sys.stderr` stands for the terminal itself, so that a progress bar still knows it is on one. Not for two threads at once.
    """
    try:
        kept = os.dup(2)
    except OSError:  # a daemon without stderr: nothing to keep clean
        yield
        return
    reading, writing = os.pipe()
    pump = threading.Thread(target=_pump, args=(reading, kept), daemon=True)
    before = sys.stderr
    sys.stderr.flush()
    os.dup2(writing, 2)
    os.close(writing)
    pump.start()
    # A stream without a descriptor, as a notebook has, is left.
    with contextlib.suppress(OSError, ValueError, AttributeError):
        if before.fileno() == 2:
            sys.stderr = os.fdopen(os.dup(kept), "w", 1, before.encoding, "replace")
    try:
        yield
    finally:
        if sys.stderr is not before:
            sys.stderr.close()
        sys.stderr = before
        os.dup2(kept, 2)  # closes the last end of the pipe that can be written to
        pump.join()
        os.close(kept)


def _pump(reading: int, kept: int) -> None:
    with os.fdopen(reading, "rb") as lines:
        for line in lines:
            if line.startswith(b"Internal Error: "):
                _log.debug("%s", line.decode(errors="replace").strip())
            else:
                os.write(kept, line)


def _make(trt: Any) -> Any:
    class Logger(trt.ILogger):  # type: ignore[misc]  # of a module that is imported late
        def __init__(self) -> None:
            trt.ILogger.__init__(self)

        def log(self, severity: Any, message: str) -> None:
            _hear(severity.name, message)

    return Logger()


def _hear(severity: str, message: str) -> None:
    if severity in ("INTERNAL_ERROR", "ERROR"):
        for heard in list(_listeners):
            heard.append(message)
        # Who listens raises it; else nobody would know.
        _log.log(logging.DEBUG if _listeners else logging.WARNING, "%s", message)
    elif severity == "WARNING":
        _log.info("%s", message)
    else:  # 6,000 lines a build
        _log.debug("%s", message)
