"""Ordinary labels, the yardstick of a calibration: how far apart two labels' similarities are for no reason."""

from __future__ import annotations

BANK = (
    # things
    "dog", "cat", "bird", "horse", "fish", "insect", "person", "child", "car", "truck", "bicycle", "train", "boat",
    "airplane", "chair", "table", "bed", "lamp", "door", "window", "bottle", "cup", "knife", "plate", "bread", "fruit",
    "telephone", "computer", "book", "clock", "shoe", "hat", "bag", "ball", "guitar", "hammer", "wheel", "flower",
    # scenes and materials
    "street", "kitchen", "office", "forest", "beach", "mountain", "river", "sky", "field", "building", "bridge",
    "night", "snow", "fire", "wood", "metal",
    # actions and events
    "walking", "running", "cooking", "eating", "dancing", "driving", "swimming", "talking", "concert", "football game",
)  # fmt: skip
