"""A Vidlex checkpoint on disk: ``config.json`` and ``model.safetensors``, never pickles.

The weights file holds the branch, the prefixes, the prompting transformer and, when ``clip.source`` is "stored",
the CLIP, in half or full precision. The LLM is not stored; the config has its name and the digest of its weights.
With the method "kernel" the file holds what ``vidlex.model.kernel`` learned, ``clip`` describes the image tower, and
``label`` and ``baseline`` are unused.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from vidlex.model.calibration.stored import PREFIX as CALIBRATION_PREFIX
from vidlex.model.calibration.stored import StoredCalibration
from vidlex.model.config import BaselineConfig, CheckpointMethod, KernelConfig, LabelEncoderConfig, VideoEncoderConfig
from vidlex.model.files import digest_files, save_tensors
from vidlex.model.scoring import Calibration, Scorer
from vidlex.model.types import FrameGeometry

FORMAT = 1
_METADATA = {"format": "vidlex"}  # one entry: safetensors writes several in random order, and the file is hashed
ENCODER_VERSION = 1  # part of the fingerprint; increment when the arithmetic changes the vectors of the same weights


class CheckpointError(ValueError): ...


@dataclass(frozen=True)
class ClipSource:
    # "stored" (weights in the checkpoint, architecture in ``model_cfg``) or an open_clip model name with an optional
    # ``/pretrained`` tag, such as "ViT-B-16-quickgelu/openai" or "local-dir:/path"
    source: str
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    geometry: FrameGeometry
    model_cfg: dict[str, Any] | None = None
    digest: str | None = None  # of the backbone's weights, verified unless they are stored in the checkpoint

    def __post_init__(self) -> None:
        text = (self.model_cfg or {}).get("text_cfg", {})
        if self.source == "stored" and ("hf_tokenizer_name" in text or "hf_model_name" in text):
            raise CheckpointError(
                "a checkpoint cannot store a CLIP whose tokenizer is a file of its own: refer to it by name "
                "(--no-store-clip)"
            )


@dataclass(frozen=True)
class CheckpointConfig:
    id: str
    clip: ClipSource
    video: VideoEncoderConfig
    label: LabelEncoderConfig
    scorer: Scorer
    default_threshold: float = 0.5
    llm_digest: str | None = None
    licence: str = "Apache-2.0"
    trained_labels: tuple[str, ...] = field(default=())
    method: CheckpointMethod = "ours"
    baseline: BaselineConfig = field(default_factory=BaselineConfig)  # unused with method "ours"
    calibration: StoredCalibration | None = None
    kernel: KernelConfig | None = None  # with method "kernel"

    def to_json(self) -> str:
        values = {"format": FORMAT, **asdict(self), "label": self.label.to_dict()}
        unused = ["calibration"] if self.calibration is None else []
        unused += ["kernel"] if self.kernel is None else ["label", "baseline"]
        for name in unused:
            del values[name]
        return json.dumps(values, indent=1, ensure_ascii=False) + "\n"

    @classmethod
    def from_json(cls, text: str) -> CheckpointConfig:
        try:
            data = json.loads(text)
            if data.pop("format") != FORMAT:
                raise CheckpointError(f"unknown checkpoint format; this version reads format {FORMAT}")
            clip = data.pop("clip")
            geometry = FrameGeometry(**clip.pop("geometry"))
            scorer = data.pop("scorer")
            calibration, kernel = data.pop("calibration", None), data.pop("kernel", None)
            if (data.get("method") == "kernel") != (kernel is not None):
                raise CheckpointError("a checkpoint has the entry kernel if it has that method, and no other has it")
            return cls(
                clip=ClipSource(mean=tuple(clip.pop("mean")), std=tuple(clip.pop("std")), geometry=geometry, **clip),
                video=VideoEncoderConfig(**data.pop("video")),
                label=LabelEncoderConfig.from_dict(data.pop("label") if kernel is None else {}),
                scorer=Scorer(scorer["logit_scale"], scorer["logit_bias"], Calibration(**scorer["calibration"])),
                trained_labels=tuple(data.pop("trained_labels")),
                baseline=BaselineConfig(**data.pop("baseline", {})),
                calibration=None if calibration is None else StoredCalibration(**calibration),
                kernel=None if kernel is None else KernelConfig.from_dict(kernel),
                **data,
            )
        except CheckpointError:
            raise
        except (KeyError, TypeError, ValueError) as error:
            raise CheckpointError(f"config.json is not a Vidlex checkpoint's: {error!r}") from error


def save_checkpoint(folder: Path, config: CheckpointConfig, tensors: dict[str, Tensor], *, half: bool) -> None:
    """``half`` (float16) changes the vectors slightly: evaluate the stored checkpoint, not the network. Statistics of a
    calibration stay float32."""
    folder.mkdir(parents=True, exist_ok=True)
    stored = {
        name: (
            value.half() if half and value.is_floating_point() and not name.startswith(CALIBRATION_PREFIX) else value
        )
        .detach()
        .cpu()
        .contiguous()
        for name, value in tensors.items()
    }
    save_tensors(stored, folder / "model.safetensors", metadata=_METADATA)
    (folder / "config.json").write_text(config.to_json(), encoding="utf-8")


def copy_checkpoint(source: Path, target: Path, *, id: str) -> None:
    config, _, _ = load_checkpoint(source)
    target.mkdir(parents=True, exist_ok=True)
    tensors = load_file(source / "model.safetensors")
    save_tensors(tensors, target / "model.safetensors", metadata=_METADATA)
    (target / "config.json").write_text(replace(config, id=id).to_json(), encoding="utf-8")


def load_checkpoint(folder: Path) -> tuple[CheckpointConfig, dict[str, Tensor], str]:
    """Config, tensors (float32) and fingerprint. Raises CheckpointError when a part is missing or damaged."""
    path = folder / "config.json"
    weights = folder / "model.safetensors"
    for required in (path, weights):
        if not required.is_file():
            raise CheckpointError(f"{folder} has no {required.name}: not a Vidlex checkpoint")
    config = CheckpointConfig.from_json(path.read_text(encoding="utf-8"))
    try:
        stored = load_file(weights)
    except SafetensorError as error:
        size = weights.stat().st_size
        raise CheckpointError(
            f"{weights} is damaged or a Git LFS pointer ({size} bytes): download it again ({error})"
        ) from error
    tensors = {k: v.float() if v.is_floating_point() else v for k, v in stored.items()}
    return config, tensors, _fingerprint(config, weights)


def check_fits(stored: Mapping[str, Tensor], own: Mapping[str, Tensor]) -> None:
    """Raises CheckpointError unless both have the same names with the same shapes."""
    mismatched = sorted(stored.keys() ^ own.keys())
    mismatched += [name for name in sorted(stored.keys() & own.keys()) if stored[name].shape != own[name].shape]
    if mismatched:
        names = ", ".join(mismatched[:5]) + (" ..." if len(mismatched) > 5 else "")
        raise CheckpointError(f"the weights do not match the network (missing, unknown or of another shape: {names})")


def _fingerprint(config: CheckpointConfig, weights: Path) -> str:
    """16 hex digits over everything that determines a vector. Scoring and ids do not."""
    digest = hashlib.sha256()
    inputs = {
        "encoder_version": ENCODER_VERSION,
        "clip": asdict(config.clip),
        "video": asdict(config.video),
        "label": config.label.to_dict(),
        "llm": config.llm_digest,
    }
    if config.kernel is not None:
        inputs["kernel"] = asdict(config.kernel)
    if config.method != "ours":
        inputs |= {"method": config.method, "baseline": asdict(config.baseline)}
    digest.update(json.dumps(inputs, sort_keys=True).encode())
    digest.update(weights.read_bytes())
    return digest.hexdigest()[:16]


def digest_tensors(tensors: dict[str, Tensor]) -> str:
    """16 hex digits over names, shapes, dtypes and values, independent of their file format."""
    digest = hashlib.sha256()
    for name in sorted(tensors):
        value = tensors[name].detach().cpu().contiguous()
        digest.update(f"{name} {tuple(value.shape)} {value.dtype}".encode())
        digest.update(value.reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()[:16]


def digest_llm(folder: Path) -> str:
    files = sorted(folder.glob("*.safetensors"))
    if not files:
        raise CheckpointError(f"the LLM folder {folder.name} has no safetensors file")
    return digest_files(files)


def check_llm(config: CheckpointConfig, name: str, folder: Path) -> None:
    """Raises CheckpointError unless the LLM ``name`` in ``folder`` has the weights of the checkpoint's training."""
    if config.llm_digest not in (None, digest_llm(folder)):
        raise CheckpointError(f"the LLM {name} has other weights than in the training of this checkpoint")
