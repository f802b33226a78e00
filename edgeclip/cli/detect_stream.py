"""`edgeclip detect --source`: frames from cameras, videos and networks."""

from __future__ import annotations

import contextlib
import os
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, fields
from functools import partial, wraps
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, TypeVar, cast

import click

from edgeclip.cli.common import notes, say
from edgeclip.cli.live_prompts import changes, parse_prompts, watched
from edgeclip.errors import InputError

if TYPE_CHECKING:
    from edgeclip.runtime.model import Model
    from edgeclip.runtime.video.sinks import Sink
    from edgeclip.runtime.video.stream import Result, Session

F = TypeVar("F", bound=Callable[..., Any])
T = TypeVar("T", bound="Closes")


@dataclass(frozen=True)
class StreamOptions:
    """Everything about a stream but the model and the prompts."""

    sources: tuple[str, ...] = ()
    show: bool = False
    save: str | None = None  # a video, or a folder for pictures
    jsonl: str | None = None  # "-": stdout
    track: bool = False
    every: int = 1
    max_frames: int | None = None
    newest: bool | None = None  # None: of live sources
    watch: str | None = None  # a file with the prompts, read again when it changes
    transport: str = "tcp"
    decoder: str | None = None
    codec: str = "h264"
    camera_size: tuple[int, int] | None = None
    attempts: int = 20

    def of_streams_only(self) -> list[str]:
        """The options given that mean nothing for single pictures."""
        shared = {"sources", "save", "jsonl"}
        names = (f.name for f in fields(self) if f.name not in shared and getattr(self, f.name) != f.default)
        return [
            "--all" if name == "newest" and not self.newest else f"--{name.replace('_', '-')}"
            for name in names
        ]


def stream_options(command: F) -> F:
    """The options of `StreamOptions`; the command gets them as one argument, `stream`."""

    @wraps(command)
    def parsed(**given: Any) -> Any:
        own = {field.name: given.pop(field.name) for field in fields(StreamOptions)}
        return command(stream=StreamOptions(**own), **given)

    found = cast("F", parsed)
    options = [
        click.option(
            "--source",
            "sources",
            multiple=True,
            help="A picture, folder, video, camera (0, /dev/video0, csi://0), URL (rtsp://, http://, udp://...) or GStreamer pipeline; "
            "repeat for several at once.",
        ),
        click.option("--show", is_flag=True, help="Draw in a window; q or Esc ends."),
        click.option(
            "--save", metavar="PATH", help="Annotated video (.mp4, .mkv), or a folder for pictures."
        ),
        click.option(
            "--jsonl", metavar="FILE", help="One JSON object a frame, flushed at once; - is stdout."
        ),
        click.option("--track", is_flag=True, help="Ids that stay from frame to frame: edgeclip[track]."),
        click.option(
            "--every", type=click.IntRange(min=1), default=1, metavar="N", help="Look at each N-th frame."
        ),
        click.option("--max-frames", type=click.IntRange(min=1), metavar="N", help="End after N frames."),
        click.option(
            "--newest/--all",
            "newest",
            default=None,
            help="Skip frames that came meanwhile, or see every one. Default: skip of live sources only.",
        ),
        click.option("--watch", metavar="FILE", help="Prompts, looked at again whenever the file changes."),
        click.option(
            "--transport", type=click.Choice(["tcp", "udp"]), default="tcp", help="Of RTSP. Default: tcp."
        ),
        click.option(
            "--decoder",
            type=click.Choice(["jetson", "nvdec", "vaapi"]),
            help="Decode in hardware (GStreamer).",
        ),
        click.option(
            "--codec",
            type=click.Choice(["h264", "h265"]),
            default="h264",
            help="For --decoder. Default: h264.",
        ),
        click.option(
            "--camera-size", callback=_size, metavar="WxH", help="Wished of a camera, e.g. 1280x720."
        ),
        click.option(
            "--attempts",
            type=click.IntRange(min=0),
            default=20,
            help="Open a lost source again so often in a row. Default: 20.",
        ),
    ]
    for option in reversed(options):  # help shows them in this order
        found = option(found)
    return found


def run_stream(
    model: Model,
    prompts: Any,
    stream: StreamOptions,
    *,
    parse: Callable[[str], Any] | None = None,
    examples: Sequence[Any] = (),
    outputs: Callable[[StreamOptions, Any], Outputs] | None = None,
    **options: Any,
) -> int:
    """Detect in a stream until it ends, `max_frames` were seen, or Ctrl-C; then finish every file.

    Args:
        parse: a line or file of prompts to `labels` of `Model.detect`; None: `parse_prompts`.
        outputs: what takes each result; None: `Outputs`.
        options: of `Model.detect`.
    """
    os.environ.setdefault("OPENCV_FFMPEG_LOGLEVEL", "-8")  # what goes wrong is said in one line of our own
    import cv2

    cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_ERROR)
    from edgeclip.runtime.video.reader import Patience
    from edgeclip.runtime.video.sources import open_source
    from edgeclip.runtime.video.stream import stream as open_stream

    read = parse or parse_prompts
    if stream.watch is not None:
        prompts = read(watched(stream.watch))
    opens = partial(
        cast("Any", open_source),  # what click has checked
        every=stream.every,
        transport=stream.transport,
        decoder=stream.decoder,
        codec=stream.codec,
        size=stream.camera_size,
    )
    patience = Patience(attempts=stream.attempts)
    with (
        open_stream(
            model, stream.sources, prompts, examples=examples, track=stream.track, newest=stream.newest,
            patience=patience, open_with=opens, **options,
        ) as session,
        (outputs or Outputs)(stream, session) as taking,
        changes(session, stream.watch, read),
    ):  # fmt: skip
        for result in session:
            if not taking.take(result) or taking.count == stream.max_frames:
                break
    return 0


class Closes(Protocol):
    """What must be closed for its file to be whole."""

    def close(self) -> None:
        """Finish it."""


class Outputs:
    """Everything that a result is written to."""

    def __init__(self, stream: StreamOptions, session: Session) -> None:
        from edgeclip.runtime.video.sinks import JsonLines, Window

        self._stream, self._session, self.count = stream, session, 0
        self._files = contextlib.ExitStack()
        self._sinks: dict[int, Sink] = {}
        self._last: dict[int, Result] = {}
        try:
            self._lines = self._own(JsonLines(stream.jsonl)) if stream.jsonl else None
            count = len(stream.sources) if stream.show else 0
            self._windows = [self._own(Window(f"edgeclip {number}")) for number in range(count)]
            if stream.save:
                for number in range(len(stream.sources)):
                    self._sinks[number] = self._sink(number)
        except BaseException:
            self._files.close()
            raise
        self._status = self._files.enter_context(_status())

    def __enter__(self) -> Outputs:
        return self

    def __exit__(self, *_: object) -> None:
        self._files.close()
        for number, result in self._last.items():
            name, stats = self._stream.sources[number], result.stats
            lost = f", {stats.reconnects} reconnections" if stats.reconnects else ""
            say(
                f"{_shown(name)}: {stats.frames} frames, {stats.fps:.1f} a second, {stats.p50_ms:.1f} ms (p50) and "
                f"{stats.p90_ms:.1f} ms (p90) from frame to result, {stats.dropped} dropped{lost}."
            )

    def take(self, result: Result) -> bool:
        """Write one result everywhere; False when the window was closed."""
        self.count += 1
        self._last[result.source] = result
        if self._lines:
            self._lines.write(record(result))
        elif not self._sinks and not self._windows:
            click.echo(_line(result))
        self._status(f"{result.frame.name}: {_brief(result)}")
        if not self._sinks and not self._windows:
            return True
        from edgeclip.runtime.video.draw import draw

        by = "track" if self._stream.track else "label"
        drawn = draw(result.frame.image, result.detections, by=cast("Any", by))
        if self._sinks:
            self._sinks[result.source].write(result.frame, drawn)
        return not self._windows or self._windows[result.source].show(drawn)

    def _sink(self, number: int) -> Sink:
        from edgeclip.runtime.video.sinks import open_sink

        path = Path(cast("str", self._stream.save))
        if len(self._stream.sources) > 1:
            path = path.with_name(f"{path.stem}-{number}{path.suffix}")
        for source in self._stream.sources:
            if path.is_file() and path.resolve() == Path(source).resolve():
                raise InputError(f"--save {path}: is the source itself. Expected another place.")
        return self._own(open_sink(str(path), self._session.fps(number)))

    def _own(self, output: T) -> T:
        self._files.callback(output.close)
        return output


def record(result: Result) -> dict[str, Any]:
    """A result, JSON-ready: the line of `--jsonl`."""
    frame, stats = result.frame, result.stats
    return {
        "source": frame.name,
        "frame": frame.number,
        "time_s": round(frame.time_s, 6),
        "dropped": stats.dropped,
        **result.detections.to_dict(),
    }


def _line(result: Result) -> str:
    found = result.detections
    things = ", ".join(
        f"{name} {score:.2f}" + (f" #{found.track_ids[i]}" if found.track_ids is not None else "")
        for i, (name, score) in enumerate(zip(found.names, found.scores.tolist(), strict=True))
    )
    return f"{result.frame.name} {result.frame.number} {result.frame.time_s:.3f} s: {things or 'nothing'}"


def _brief(result: Result) -> str:
    stats = result.stats
    lost = f", {stats.reconnects} reconnections" if stats.reconnects else ""
    return (
        f"{stats.fps:.1f} frames/s, {stats.p50_ms:.0f} ms (p90 {stats.p90_ms:.0f}), {stats.dropped} dropped{lost}, "
        f"{len(result.detections)} found"
    )


@contextlib.contextmanager
def _status() -> Iterator[Callable[[str], None]]:
    """A line on stderr that is written over, where that is a terminal."""
    if not sys.stderr.isatty():
        yield lambda _: None
        return
    from rich.text import Text

    with notes().status("waiting for the first frame") as status:
        yield lambda text: status.update(Text(text))  # a name may hold what would be markup


def _shown(source: str) -> str:
    from edgeclip.runtime.video.sources import shown

    return shown(source)


def _size(context: click.Context, option: click.Parameter, value: str | None) -> tuple[int, int] | None:
    if value is None:
        return None
    width, _, height = value.lower().partition("x")
    if not re.fullmatch(r"0*[1-9]\d{0,4}x0*[1-9]\d{0,4}", value.lower(), re.ASCII):
        raise click.BadParameter(f"expected WIDTHxHEIGHT in pixels, e.g. 1280x720, got {value!r}.")
    return int(width), int(height)
