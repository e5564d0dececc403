from __future__ import annotations

import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import open_clip
import torch
from torch import Tensor

from vidlex.model.baselines.base import ClipLabelEncoder
from vidlex.model.baselines.class_name import TEMPLATES, ClassNameLabelEncoder
from vidlex.model.baselines.coop import CoOpLabelEncoder
from vidlex.model.baselines.dualcoop import DualCoOpLabelEncoder
from vidlex.model.baselines.fixed_llm import FixedLlmLabelEncoder
from vidlex.model.calibration.domain import DefaultCalibration
from vidlex.model.calibration.stored import from_stored
from vidlex.model.checkpoint import (
    ENCODER_VERSION,
    CheckpointConfig,
    CheckpointError,
    ClipSource,
    check_fits,
    check_llm,
    digest_llm,
    digest_tensors,
    load_checkpoint,
)
from vidlex.model.classifier import Classifier
from vidlex.model.config import BaselineConfig, LabelEncoderConfig, Method, VideoEncoderConfig, fingerprint
from vidlex.model.dummy import create_dummy
from vidlex.model.extensions.features import video_head
from vidlex.model.kernel.label_encoder import KernelLabelEncoder
from vidlex.model.kernel.loading import load_encoders
from vidlex.model.pretrained.loading import load_pretrained
from vidlex.model.scoring import zero_shot_scorer
from vidlex.model.specs import ModelNotFound, checkpoint_folder, is_open_clip_spec, is_transformers_spec, resolve_alias
from vidlex.model.text.clip_text import ClipText
from vidlex.model.text.label_encoder import LabelEncoder
from vidlex.model.text.llm import FrozenLLM
from vidlex.model.text.load_llm import load_llm
from vidlex.model.torch_classifier import TorchClassifier
from vidlex.model.video.encoder import VideoEncoder
from vidlex.model.video.precision import Precision
from vidlex.model.video.towers.preprocessing import read_preprocessing
from vidlex.model.weights.llm import fetch_llm

# values in ``open_clip+PROMPTING:NAME`` and ``transformers+PROMPTING:NAME``; "llm", for open_clip, is the default LLM
PROMPTING = ("name", "photo", "imagenet", "video", "llm")


@dataclass(frozen=True, eq=False)
class Clip:
    model: Any  # open_clip's CLIP or CustomTextCLIP, frozen, in evaluation mode
    tokenizer: Any
    source: ClipSource
    model_cfg: dict[str, Any]

    @property
    def digest(self) -> str:
        return digest_tensors(dict(self.model.state_dict()))


def create_clip(name: str) -> Clip:
    """An open_clip model in float32 on the CPU: ``NAME/PRETRAINED``, ``local-dir:/path`` or ``hf-hub:org/repo``.

    Raises ModelNotFound for an unknown name or unavailable weights.
    """
    is_repository = name.startswith(("local-dir:", "hf-hub:"))
    architecture, _, tag = (name, "", "") if is_repository else name.partition("/")
    if not is_repository and not tag:
        raise ModelNotFound(f"{name!r} names no weights: use NAME/PRETRAINED, such as ViT-B-16-quickgelu/openai")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", UserWarning)  # a QuickGELU mismatch gives wrong features
            model = open_clip.create_model(architecture, pretrained=tag or None, precision="fp32", device="cpu")
        tokenizer = open_clip.get_tokenizer(architecture)
    except UserWarning as warning:
        raise ModelNotFound(
            f"open_clip warns about {name!r}: {warning}. For openai weights use the -quickgelu name."
        ) from None
    except (RuntimeError, OSError, ValueError) as error:
        raise ModelNotFound(
            f"cannot load the open_clip model {name!r} ({type(error).__name__}: {error}). Without a hub, give a "
            "folder: open_clip:local-dir:/path/with/open_clip_config.json"
        ) from error
    try:
        source = ClipSource(name, *read_preprocessing(model.visual))
    except ValueError as error:
        raise ModelNotFound(f"{name!r}: {error}") from None
    model_cfg = open_clip.get_model_config(architecture) or {}
    return Clip(model.eval().requires_grad_(False), tokenizer, source, model_cfg)


def _restore_clip(source: ClipSource, state: dict[str, Tensor]) -> Clip:
    if source.model_cfg is None:
        raise CheckpointError("the checkpoint stores its CLIP but has no clip.model_cfg")
    arguments = dict(source.model_cfg)
    model_class = open_clip.CustomTextCLIP if arguments.pop("custom_text", False) else open_clip.CLIP
    model = model_class(**arguments)
    check_fits(state, model.state_dict())
    model.load_state_dict(state)
    tokenizer = open_clip.SimpleTokenizer(context_length=arguments["text_cfg"].get("context_length", 77))
    return Clip(model.eval().requires_grad_(False), tokenizer, source, source.model_cfg)


def create_label_encoder(
    config: LabelEncoderConfig, clip: Clip, device: str = "cpu"
) -> tuple[LabelEncoder, Path]:  # and the LLM's folder
    """On the CPU; ``device`` is where it will run, which decides ``llm_dtype="auto"``."""
    config = config.for_device(device)
    llm, folder = _load_llm(config)
    return LabelEncoder(llm, ClipText(clip.model, clip.tokenizer), config), folder


def _load_llm(config: LabelEncoderConfig) -> tuple[FrozenLLM, Path]:
    folder = fetch_llm(config.llm)
    return load_llm(folder, dtype=torch.bfloat16 if config.llm_dtype == "bfloat16" else torch.float32), folder


def create_baseline_labels(
    method: Method, baseline: BaselineConfig, label: LabelEncoderConfig, clip: Clip
) -> tuple[ClipLabelEncoder, Path | None]:
    text = ClipText(clip.model, clip.tokenizer)
    if method == "coop":
        return CoOpLabelEncoder(
            text, num_context=baseline.num_context, words=baseline.context_words, seed=label.seed
        ), None
    if method == "dualcoop":
        return DualCoOpLabelEncoder(text, num_context=baseline.num_context, seed=label.seed), None
    if method == "fixed_llm":
        llm, folder = _load_llm(label)
        return FixedLlmLabelEncoder(llm, text, prompt_version="v2", renormalize=label.renormalize), folder
    if method in ("class_name", "vificlip"):
        return ClassNameLabelEncoder(text, TEMPLATES[baseline.templates]), None
    raise ValueError(f"{method!r} is not a baseline")


def list_devices(spec: str) -> list[str]:  # of VIDLEX_DEVICE: comma-separated names, or ``cuda:all``
    if spec != "cuda:all":
        return spec.split(",")
    gpus = [f"cuda:{number}" for number in range(torch.cuda.device_count())]
    if not gpus:
        raise ValueError("cuda:all was requested, but there is no GPU")
    return gpus


def load_classifier(spec: str, *, device: str = "auto", precision: Precision = "float32") -> Classifier:
    """``spec`` is ``dummy``, a zoo name, a checkpoint folder, an alias of ALIASES, or ``open_clip:NAME`` for zero-shot
    classification with the frame mean and class-name prompts (``open_clip+PROMPTING:NAME`` selects other prompts, see
    PROMPTING), or ``transformers:NAME`` for that with a model of ``vidlex.model.pretrained``.

    ``precision`` is that of the video encoder (``vidlex.model.video.precision``); labels are encoded in the precision
    in which the checkpoint was trained. Raises ModelNotFound, CheckpointError or WeightsError.
    """
    torch_device = ("cuda" if torch.cuda.is_available() else "cpu") if device == "auto" else device
    dummy = create_dummy(spec)
    if dummy is not None:
        return dummy
    spec = resolve_alias(spec)
    if is_open_clip_spec(spec):
        return _load_zero_shot(spec, torch_device, precision)
    if is_transformers_spec(spec):
        return _load_transformers(spec, torch_device, precision)
    return _load_from_checkpoint(checkpoint_folder(spec), torch_device, precision)


def _load_from_checkpoint(folder: Path, device: str, precision: Precision) -> Classifier:
    config, tensors, identity = load_checkpoint(folder)
    video: VideoEncoder
    label: LabelEncoder | ClipLabelEncoder | KernelLabelEncoder
    if config.method == "kernel":
        video, label = load_encoders(config, tensors)
        facts = {
            "llm": label.config.llm,
            "branch_blocks": 0,
            "motion_labels": label.config.num_motion_labels,
        }
    else:
        video, label, facts = _clip_encoders(config, config.method, tensors)
    info = {
        "backbone": config.clip.source,
        "method": config.method,
        **facts,
        "licence": config.licence,
        "trained_labels": len(config.trained_labels),
    }
    return TorchClassifier(
        id=config.id,
        fingerprint=identity,
        video=video,
        label=label,
        scorer=config.scorer,
        geometry=config.clip.geometry,
        default_threshold=config.default_threshold,
        device=device,
        precision=precision,
        info=info,
        calibration=_default_calibration(config, tensors),
    )


def _clip_encoders(
    config: CheckpointConfig, method: Method, tensors: dict[str, Tensor]
) -> tuple[VideoEncoder, LabelEncoder | ClipLabelEncoder, dict[str, Any]]:
    """Encoders on CLIP, of the paper's method or a baseline, and their facts."""
    parts = {part: _select_prefix(tensors, f"{part}.") for part in ("clip", "branch", "label")}
    if config.clip.source == "stored":
        clip = _restore_clip(config.clip, parts["clip"])
    else:
        clip = create_clip(config.clip.source)
        if clip.digest != config.clip.digest:
            raise CheckpointError(
                f"the backbone {config.clip.source} has other weights than in the training of this checkpoint"
            )
    video = VideoEncoder(clip.model.visual, config.video, mean=config.clip.mean, std=config.clip.std)
    label: LabelEncoder | ClipLabelEncoder
    llm_folder: Path | None
    if method == "ours":
        label, llm_folder = create_label_encoder(config.label, clip)
    else:
        label, llm_folder = create_baseline_labels(method, config.baseline, config.label, clip)
    if llm_folder is not None:
        check_llm(config, config.label.llm, llm_folder)
    check_fits(parts["branch"], video.trainable_parameters())
    check_fits(parts["label"], label.trainable_state_dict())
    video.load_state_dict(parts["branch"], strict=False)
    label.load_state_dict(parts["label"], strict=False)
    video.head = video_head(config.label) if method == "ours" else None
    facts = {
        "llm": config.label.llm if llm_folder is not None else None,
        "branch_blocks": config.video.num_branch_blocks,
    }
    return video, label, facts


def _default_calibration(config: CheckpointConfig, tensors: dict[str, Tensor]) -> DefaultCalibration | None:
    if config.calibration is None:
        return None
    try:
        stored = {name: value.numpy() for name, value in tensors.items() if name.startswith("calibration.")}
        return from_stored(config.calibration, stored)
    except (KeyError, ValueError) as error:
        raise CheckpointError(f"the checkpoint's calibration is damaged: {error!r}") from error


def _load_zero_shot(spec: str, device: str, precision: Precision) -> Classifier:
    kind, _, name = spec.partition(":")
    prompting = kind.removeprefix("open_clip").removeprefix("+") or "default"
    if prompting not in ("default", *PROMPTING):
        raise ModelNotFound(f"{kind}: unknown prompts {prompting!r}; known: {', '.join(PROMPTING)}")
    clip = create_clip(name)
    video = VideoEncoder(
        clip.model.visual,
        VideoEncoderConfig(num_branch_blocks=0, num_frames=8),
        mean=clip.source.mean,
        std=clip.source.std,
    )
    method: Method = "fixed_llm" if prompting == "llm" else "class_name"
    baseline = BaselineConfig() if prompting == "llm" else BaselineConfig(templates=prompting)  # type: ignore[arg-type]
    label, llm_folder = create_baseline_labels(method, baseline, LabelEncoderConfig(), clip)
    prompts: list[str] = [digest_llm(llm_folder)] if llm_folder is not None else list(TEMPLATES[baseline.templates])
    display_name = Path(name).name if name.startswith("local-dir:") else name
    bias = getattr(clip.model, "logit_bias", None)
    scorer = zero_shot_scorer(float(clip.model.logit_scale.exp()), None if bias is None else float(bias))
    identity = fingerprint(
        ENCODER_VERSION, clip.digest, prompts, list(clip.source.mean), list(clip.source.std),
        clip.source.geometry.image_size, clip.source.geometry.resize_mode,
    )  # fmt: skip
    return TorchClassifier(
        id=f"{kind}:{display_name}",
        fingerprint=identity,
        video=video,
        label=label,
        scorer=scorer,
        geometry=clip.source.geometry,
        default_threshold=0.5,
        device=device,
        precision=precision,
        info={"backbone": display_name, "llm": LabelEncoderConfig().llm if llm_folder else None, "branch_blocks": 0},
    )


def _load_transformers(spec: str, device: str, precision: Precision) -> Classifier:
    kind, _, name = spec.partition(":")
    prompting = kind.removeprefix("transformers").removeprefix("+") or "default"
    known = [prompts for prompts in PROMPTING if prompts != "llm"]
    if prompting not in ("default", *known):
        raise ModelNotFound(f"{kind}: unknown prompts {prompting!r}; known: {', '.join(known)}")
    loaded = load_pretrained(name, TEMPLATES[prompting])  # type: ignore[index]
    digest = digest_tensors(dict(loaded.model.state_dict()))
    return TorchClassifier(
        id=f"{kind}:{loaded.name}",
        fingerprint=fingerprint(ENCODER_VERSION, "transformers", digest, loaded.settings),
        video=loaded.video,
        label=loaded.label,
        scorer=loaded.model.scorer(),
        geometry=loaded.preprocessing.geometry,
        default_threshold=0.5,
        device=device,
        precision=precision,
        info={"backbone": loaded.name, "model_type": loaded.model_type, "llm": None, "branch_blocks": 0},
    )


def _select_prefix(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}
