"""Does a stream's memory grow? A clip, detected, tracked, drawn, encoded and written as JSON Lines, as `edgeclip detect` does it.

    python -m benchmarks.stream_memory                      2,000 frames of 640 x 360 with the planted detector of the tests
    python -m benchmarks.stream_memory --bundle nano --newest

Resident memory is read after each frame; the growth is that between the medians of frames 500-600 and of the last 100. It must stay
below 1 kB a frame. Exit code 1 when it does not.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

import edgeclip
from benchmarks.machine import describe
from edgeclip.cli import detect_stream
from edgeclip.runtime.video.sinks import VideoSink

LIMIT_BYTES = 1000  # a frame
FIRST, SPAN = 500, 100
PAGE = os.sysconf("SC_PAGE_SIZE")


def resident_bytes() -> int:
    """Of this process."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * PAGE


def growth(resident: Sequence[int], first: int = FIRST, span: int = SPAN) -> float:
    """Bytes a frame between the medians of `span` frames from `first` on and of the last `span`."""
    early, late = np.median(resident[first : first + span]), np.median(resident[-span:])
    return float(late - early) / (len(resident) - first - span)


def frames(count: int, size: tuple[int, int] = (360, 640)) -> Iterator[NDArray[np.uint8]]:
    """Coloured squares that wander over a grey picture, some of them coming and going."""
    rng = np.random.default_rng(0)
    starts, steps = rng.uniform(0, 1, (8, 2)), rng.uniform(-0.01, 0.01, (8, 2))
    colours = np.array([(255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 0)] * 2, np.uint8)
    for i in range(count):
        image = np.full((*size, 3), 60, np.uint8)
        for j, (place, colour) in enumerate(zip((starts + steps * i) % 1, colours, strict=True)):
            if (i // 50 + j) % 5:
                y, x = (place * (size[0] - 90, size[1] - 90)).astype(int)
                image[y : y + 90, x : x + 90] = colour
        yield image


def follow(model: Any, clip: Path, folder: Path, prompts: Any, newest: bool) -> tuple[list[int], Any]:
    """Run the stream as the command does: resident bytes after each frame, and the last result."""
    resident: list[int] = []
    last: list[Any] = [None]
    options = detect_stream.StreamOptions(
        sources=(str(clip),), save=str(folder / "out.mp4"), jsonl=str(folder / "out.jsonl"), track=True, newest=newest,
    )  # fmt: skip

    class Watched(detect_stream.Outputs):
        def take(self, result: Any) -> bool:
            going = super().take(result)
            resident.append(resident_bytes())
            last[0] = result
            return going

    detect_stream.run_stream(model, prompts, options, outputs=Watched)
    return resident, last[0]


def main() -> int:
    """Make the clip, follow it, say how memory went."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--frames", type=int, default=2000)
    parser.add_argument("--bundle", help="default: the planted detector of the tests")
    parser.add_argument("--prompts", default="red,green,blue,yellow")
    parser.add_argument("--newest", action="store_true")
    given = parser.parse_args()
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        clip = VideoSink(folder / "clip.mp4", 25.0)
        for i, image in enumerate(frames(given.frames)):
            clip.write(as_frame(image, i), image)
        clip.close()
        model = stack.enter_context(edgeclip.load(given.bundle or planted(folder / "planted")))
        resident, last = follow(model, folder / "clip.mp4", folder, given.prompts.split(","), given.newest)
        if len(resident) <= FIRST + 2 * SPAN:
            raise SystemExit(
                f"{len(resident)} results of {given.frames} frames: too few to tell. Pass more --frames."
            )
        bytes_a_frame = growth(resident)
        print(describe())
        print(
            f"{len(resident)} frames, {last.stats.fps:.1f} a second, p50 {last.stats.p50_ms:.1f} ms, {last.stats.dropped} dropped; "
            f"resident {resident[FIRST] / 1e6:.1f} MB after {FIRST}, {resident[-1] / 1e6:.1f} MB at the end: "
            f"{bytes_a_frame:.0f} bytes a frame (limit {LIMIT_BYTES})"
        )
    return int(bytes_a_frame >= LIMIT_BYTES)


def as_frame(image: NDArray[np.uint8], number: int) -> Any:
    """A frame as a source gives it."""
    from edgeclip.runtime.video.frames import Frame

    return Frame(image, number, number / 25.0, 0.0, "made")


def planted(folder: Path) -> Any:
    """The tests' detector: it knows colours."""
    from tests.runtime.detectors import make_detector

    return make_detector(folder)


if __name__ == "__main__":
    raise SystemExit(main())
