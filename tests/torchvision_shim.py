"""Lets torchvision import beside a torch that it was not built for: importing this module defines two operators as dummies.

torchvision registers shapes for `nms` and `qnms` of its compiled part, which is absent then. Neither is ever called here.
Where torchvision's own part loads, nothing is defined.
"""

from __future__ import annotations

import contextlib
import sys

import torch

with contextlib.suppress(RuntimeError):  # an operator that does not exist
    import torchvision  # noqa: F401

if "torchvision" not in sys.modules:
    LIBRARY = torch.library.Library("torchvision", "DEF")  # must outlive the import, or the operators vanish
    for _name in ("nms", "qnms"):
        LIBRARY.define(f"{_name}(Tensor boxes, Tensor scores, float iou_threshold) -> Tensor")
