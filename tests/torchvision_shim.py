"""Lets torchvision import beside a torch that it was not built for: importing this module defines two operators as dummies.

torchvision registers shapes for `nms` and `qnms` of its compiled part, which is absent then. Neither is ever called here.
"""

from __future__ import annotations

import torch

LIBRARY = torch.library.Library("torchvision", "DEF")  # must outlive the import, or the operators vanish
for _name in ("nms", "qnms"):
    LIBRARY.define(f"{_name}(Tensor boxes, Tensor scores, float iou_threshold) -> Tensor")
