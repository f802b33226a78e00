"""The same thing in the next frame: ids that stay."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from edgeclip.errors import MissingExtraError
from edgeclip.runtime.detections import Detections


class Tracker(Protocol):
    """Keeps one stream's ids."""

    def update(self, detections: Detections, time_s: float) -> Detections:
        """The same detections, in the same order, with `track_ids`; -1: not yet sure."""


@dataclass(frozen=True)
class TrackSettings:
    """When two boxes are one thing."""

    lost_s: float = 1.0  # out of sight for longer: a new id
    iou: float = 0.1  # at least so much of the predicted box
    frames: int = 2  # seen in so many frames in a row before it gets an id
    score: float = (
        0.0  # at least, to begin a track; what reaches the tracker has passed the labels' thresholds
    )


class ByteTrack:
    """Ids by the package `trackers` (ByteTrack: Zhang et al. 2022, arXiv:2110.06864), one tracker a label.

    A label by itself, so that two labels never share an id, however much their boxes overlap. Labels are known by their text: ids
    stay when prompts change around them.

    Raises:
        MissingExtraError: `trackers` is not installed.
    """

    def __init__(self, settings: TrackSettings | None = None, fps: float = 30.0) -> None:
        self._settings, self._fps = settings or TrackSettings(), fps
        self._package = _trackers()
        self._lanes: dict[str, _Lane] = {}
        self._next = 0

    def update(self, detections: Detections, time_s: float) -> Detections:
        """Give ids: 0, 1, 2... over the whole stream, none twice."""
        ids = np.full(len(detections), -1, np.int64)
        rows: dict[str, list[int]] = {name: [] for name in self._lanes}  # a label without a box still ages
        for row, name in enumerate(detections.names):
            rows.setdefault(name, []).append(row)
        for name, found in rows.items():
            lane = self._lanes.setdefault(name, _Lane(self._tracker()))
            for row, local in zip(found, lane.update(detections, found, time_s), strict=True):
                if local >= 0:
                    ids[row] = lane.ids.setdefault(local, self._next)
                    self._next += ids[row] == self._next
            if time_s - lane.seen_s > self._settings.lost_s:
                del self._lanes[name]  # or prompts that changed all day would be tracked for ever
        return replace(detections, track_ids=ids)

    def _tracker(self) -> Any:
        return self._package.ByteTrackTracker(
            lost_track_buffer=round(self._settings.lost_s * 30),  # which it counts at 30 frames a second
            frame_rate=self._fps,
            track_activation_threshold=self._settings.score,
            high_conf_det_threshold=self._settings.score,
            minimum_consecutive_frames=self._settings.frames,
            minimum_iou_threshold=self._settings.iou,
        )


class _Lane:
    """The tracker of one label."""

    def __init__(self, tracker: Any) -> None:
        self.tracker, self.seen_s = tracker, 0.0
        self.ids: dict[int, int] = {}  # the tracker's own to the stream's

    def update(self, detections: Detections, rows: list[int], time_s: float) -> NDArray[np.int64]:
        """(len(rows),) the tracker's own ids."""
        import supervision

        self.seen_s = time_s if rows else self.seen_s
        count, local = len(rows), np.full(len(rows), -1, np.int64)
        given = supervision.Detections(
            xyxy=detections.boxes[rows].reshape(count, 4).astype(np.float64),
            confidence=detections.scores[rows].astype(np.float64),
            data={"row": np.arange(count)},  # it gives them back in another order
        )
        found = self.tracker.update(given, timestamp=time_s)  # frames may be missing between two
        if len(found):
            local[found.data["row"]] = found.tracker_id
        alive = {track.tracker_id for track in self.tracker.tracks}
        self.ids = {own: stream for own, stream in self.ids.items() if own in alive}
        return local


def _trackers() -> Any:
    try:
        import supervision  # noqa: F401
        import trackers
    except ImportError as error:
        raise MissingExtraError(
            f"tracking needs the package `trackers` ({error}). pip install 'edgeclip[track]'."
        ) from error
    return trackers
