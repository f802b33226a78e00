"""Give the scores of a trained head the height that a few names ask for, and the bundle its threshold.

    python examples/nano/calibrate.py SCENES MODEL OUTPUT

The head learned to say yes to one name of thousands; among some twenty it is far too modest. To its bias the whole number is added
with which AP50 is best on the held-out scenes; the threshold is the score at which F1 is best there. OUTPUT is MODEL with both.
"""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

import torch
from detector import VALIDATION, VALIDATION_SEED, find
from evaluate_detection import average_precision, best_threshold
from scene_features import store
from scenes import drawings, held_out

from edgeclip.models.nano import NanoCLIP
from edgeclip.models.sources import load_source
from edgeclip.models.training.checkpoint import write_source

BIAS = 5  # channel of the head's output


def calibrate(folder: Path, spec: str, output: Path, shifts: range = range(9)) -> tuple[int, float]:
    """-> the number added, and the threshold."""
    source = load_source(spec)
    model = source.model
    assert isinstance(model, NanoCLIP)
    assert model.detector is not None
    assert source.detection is not None
    bias = model.detector.head.output.bias
    assert bias is not None
    stored = store(
        folder / "scenes", model, drawings(folder, "training", held_out), VALIDATION_SEED, VALIDATION
    )
    start, best = float(bias[BIAS].detach()), (-1.0, 0, 0.0)
    for shift in shifts:
        with torch.no_grad():
            bias[BIAS] = start + shift
            found = find(source, stored)
        ap50 = average_precision(stored.objects, found)["AP50"]
        threshold, f1 = best_threshold(stored.objects, found)
        print(f"+{shift}: AP50 {ap50:.4f}, F1 {f1:.4f} at {threshold:.3f}", flush=True)
        best = max(best, (ap50, shift, threshold))
    _, shift, threshold = best
    with torch.no_grad():
        bias[BIAS] = start + shift
    threshold = round(threshold, 3)
    write_source(output, replace(source, detection=replace(source.detection, threshold=threshold)))
    return shift, threshold


if __name__ == "__main__":
    print(calibrate(Path(sys.argv[1]), sys.argv[2], Path(sys.argv[3])))
