"""Loads a video-text model of transformers: safetensors only, without remote code."""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from vidlex.model.pretrained.image_text import ImageTextModel, NaflexModel
from vidlex.model.pretrained.interface import VideoTextModel
from vidlex.model.pretrained.label_encoder import PretrainedLabelEncoder
from vidlex.model.pretrained.pe_av import PeAvModel
from vidlex.model.pretrained.preprocessing import Preprocessing, read_processor
from vidlex.model.pretrained.video import PretrainedVideoEncoder
from vidlex.model.pretrained.videoprism import VideoPrismModel
from vidlex.model.pretrained.xclip import XClipModel
from vidlex.model.specs import ModelNotFound, check_transformers_folder, transformers_folder
from vidlex.model.weights.hub import fetch_repository

FAMILIES: dict[str, type[VideoTextModel]] = {
    "clip": ImageTextModel,
    "pe_audio_video": PeAvModel,
    "pe_video": PeAvModel,
    "siglip": ImageTextModel,
    "siglip2": NaflexModel,
    "videoprism": VideoPrismModel,
    "xclip": XClipModel,
}
# of config.json: they do not change a vector
_VOLATILE = ("_name_or_path", "architectures", "dtype", "torch_dtype", "transformers_version")


@dataclass(frozen=True, eq=False)
class Pretrained:
    name: str
    model_type: str
    model: VideoTextModel  # frozen, in evaluation mode, float32, on the CPU
    video: PretrainedVideoEncoder
    label: PretrainedLabelEncoder
    preprocessing: Preprocessing
    settings: dict[str, Any]  # JSON values; with the weights they determine every vector


def load_pretrained(name: str, templates: Sequence[str]) -> Pretrained:
    """``name`` is a folder in the hub's layout, or ``ORG/NAME`` or ``ORG/NAME@REVISION`` on the model hub.

    Raises ModelNotFound or WeightsError.
    """
    folder = transformers_folder(name)
    display_name = name if folder is None else folder.resolve().name
    if folder is None:
        repository, _, revision = name.partition("@")
        # the configuration first: another kind of model is refused before its weights are downloaded
        config_only = fetch_repository(repository, revision=revision or None, patterns=["config.json"])
        check_transformers_folder(config_only, with_weights=False)
        folder = fetch_repository(repository, revision=revision or None)
        check_transformers_folder(folder)
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    family = FAMILIES[config["model_type"]]
    network, processor, tokenizer = _load_parts(display_name, folder, family)
    model = family(network.eval().requires_grad_(False)).eval()
    if not family.has_fixed_num_frames:
        model.num_frames = int(getattr(processor, "num_frames", None) or model.num_frames)
    preprocessing = read_processor(processor)
    video = PretrainedVideoEncoder(model, preprocessing)
    label = PretrainedLabelEncoder(model, tokenizer, templates)
    _check_fit(display_name, video, label, preprocessing)
    settings = {
        "config": _without(config, _VOLATILE),
        "preprocessing": asdict(preprocessing),
        "tokenizer": label.tokenizer_digest,
        "context_length": label.context_length,
        "templates": list(templates),
    }
    return Pretrained(display_name, config["model_type"], model, video, label, preprocessing, settings)


def _load_parts(name: str, folder: Path, family: type[VideoTextModel]) -> tuple[Any, Any, Any]:
    """The model, its image or video processor and its tokenizer. Raises ModelNotFound."""
    from transformers import AutoImageProcessor, AutoTokenizer, AutoVideoProcessor
    from transformers.utils import logging as transformers_logging

    options: dict[str, Any] = {"local_files_only": True, "trust_remote_code": False}
    processors: Any = AutoVideoProcessor if family.reads_videos else AutoImageProcessor
    # both would end up in the service's log: the progress, and a table of the weights that are not used
    transformers_logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    verbosity = transformers_logging.get_verbosity()
    transformers_logging.set_verbosity(logging.ERROR)
    try:
        network, report = family.load_network(
            folder,
            use_safetensors=True,
            dtype=torch.float32,
            ignore_mismatched_sizes=True,  # they are refused below, with the missing ones
            **options,
        )
        processor = processors.from_pretrained(folder, **options)
        tokenizer = AutoTokenizer.from_pretrained(folder, **options)
    except (OSError, ValueError, KeyError, ImportError, RuntimeError) as error:
        raise ModelNotFound(f"cannot load {name} ({type(error).__name__}: {error})") from error
    finally:
        transformers_logging.set_verbosity(verbosity)
    missing = sorted({*report["missing_keys"], *(entry[0] for entry in report["mismatched_keys"])})
    if missing:
        names = ", ".join(missing[:5]) + (" ..." if len(missing) > 5 else "")
        raise ModelNotFound(f"the weights of {name} are incomplete (missing or of another shape: {names})")
    return network, processor, tokenizer


def _check_fit(
    name: str, video: PretrainedVideoEncoder, label: PretrainedLabelEncoder, preprocessing: Preprocessing
) -> None:
    """Raises ModelNotFound for an image size that the model does not take, or features of different widths."""
    side = preprocessing.geometry.image_size
    try:
        width = video.encode_video(torch.zeros(1, 1, 3, side, side, dtype=torch.uint8)).shape[1]
    except (AssertionError, RuntimeError, ValueError) as error:
        raise ModelNotFound(f"{name} does not take pictures of its preprocessing's size: {error}") from error
    dim = label.encode_labels(["a"]).shape[1]
    if width != dim:
        raise ModelNotFound(f"{name} has video features of width {width} and text features of width {dim}")


def _without(value: Any, keys: tuple[str, ...]) -> Any:
    if isinstance(value, dict):
        return {key: _without(entry, keys) for key, entry in value.items() if key not in keys}
    return [_without(entry, keys) for entry in value] if isinstance(value, list) else value
