"""Which classes count as known and which as new, by the splits that papers report."""

from __future__ import annotations

# Bansal et al. 2018 (arXiv:1804.04340), as OVR-CNN, ViLD, Detic and CLIM report it. The other 15 classes of COCO are left out,
# since WordNet has no synset of theirs that the split could be made by.
OV_COCO = {
    "base": (
        "person", "bicycle", "car", "motorcycle", "train", "truck", "boat", "bench", "bird", "horse", "sheep", "bear", "zebra",
        "giraffe", "backpack", "handbag", "suitcase", "frisbee", "skis", "kite", "surfboard", "bottle", "fork", "spoon", "bowl",
        "banana", "apple", "sandwich", "orange", "broccoli", "carrot", "pizza", "donut", "chair", "bed", "toilet", "tv", "laptop",
        "mouse", "remote", "microwave", "oven", "toaster", "refrigerator", "book", "clock", "vase", "toothbrush",
    ),
    "novel": (
        "airplane", "bus", "cat", "dog", "cow", "elephant", "umbrella", "tie", "snowboard", "skateboard", "cup", "knife", "cake",
        "couch", "keyboard", "sink", "scissors",
    ),
}  # fmt: skip

# LVIS's own groups, by the number of training pictures that hold a class: 1-10, 11-100, more. Open-vocabulary work trains without
# the rare ones.
LVIS = {"rare": "r", "common": "c", "frequent": "f"}
