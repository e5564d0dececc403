"""Loads a copy of a model per device. torch is imported only for models that need it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from vidlex.model.classifier import Classifier
from vidlex.model.dummy import create_dummy

if TYPE_CHECKING:
    from vidlex.model.video.precision import Precision


def import_encoders(spec: str) -> None:
    """What ``load_copies`` will import, which takes seconds."""
    if create_dummy(spec) is None:
        import vidlex.model.factory  # noqa: F401


def load_copies(spec: str, *, device: str, precision: Precision) -> list[Classifier]:
    """``device`` and ``precision`` are those of the settings.

    Raises what ``load_classifier`` raises, and ValueError for a device that there is not.
    """
    dummies = [create_dummy(spec) for _ in device.split(",")]
    if dummies[0] is not None:
        return [dummy for dummy in dummies if dummy is not None]
    from vidlex.model.factory import list_devices, load_classifier

    return [load_classifier(spec, device=name, precision=precision) for name in list_devices(device)]
