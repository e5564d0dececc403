"""Joins the rooms: a backbone by name, the two encoders, and the classifier that the service owns."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import torch
from numpy.typing import NDArray
from torch import Tensor

from vidlex.model.baselines.base import ClipLabelEncoder
from vidlex.model.baselines.class_name import TEMPLATES, ClassNameLabelEncoder
from vidlex.model.baselines.coop import CoOpLabelEncoder
from vidlex.model.baselines.dualcoop import DualCoOpLabelEncoder
from vidlex.model.baselines.fixed_llm import FixedLlmLabelEncoder
from vidlex.model.checkpoint import (
    ENCODER_VERSION,
    CheckpointError,
    ClipSource,
    check_fits,
    digest_llm,
    digest_tensors,
    load_checkpoint,
)
from vidlex.model.classifier import Classifier, LabelDescription
from vidlex.model.config import BaselineConfig, LabelEncoderConfig, Method, VideoEncoderConfig, fingerprint
from vidlex.model.dummy import create_dummy
from vidlex.model.scoring import Scorer
from vidlex.model.text.clip_text import ClipText
from vidlex.model.text.label_encoder import LabelEncoder
from vidlex.model.text.llm import FrozenLLM
from vidlex.model.types import FrameGeometry
from vidlex.model.video.encoder import VideoEncoder
from vidlex.model.video.precision import Precision, choose_encoder
from vidlex.model.weights import fetch_llm, list_zoo, zoo_dir

PROMPTING = ("name", "photo", "imagenet", "video", "llm")
"""``open_clip+PROMPTING:NAME``: the templates of a zero-shot model, or attributes that the default LLM lists."""
MAX_FRAMES_PER_PASS = 256
"""Frames that go through the image tower at once: bounds the memory of a request."""


class ModelNotFound(ValueError):
    """``VIDLEX_MODEL`` names nothing that can be loaded. The message lists what could be."""


@dataclass(frozen=True, eq=False)
class Clip:
    """A loaded open_clip model and how pictures and words are prepared for it."""

    model: Any
    """open_clip's CLIP or CustomTextCLIP, in evaluation mode, frozen."""
    tokenizer: Any
    source: ClipSource
    model_cfg: dict[str, Any]

    @property
    def digest(self) -> str:
        return digest_tensors(dict(self.model.state_dict()))


def create_clip(name: str) -> Clip:
    """Any open_clip model in float32 on the CPU: ``NAME/PRETRAINED``, ``local-dir:/path`` or ``hf-hub:org/repo``.

    Raises ModelNotFound when open_clip does not know the name or the weights cannot be had.
    """
    local = name.startswith(("local-dir:", "hf-hub:"))
    architecture, _, tag = (name, "", "") if local else name.partition("/")
    if not local and not tag:
        raise ModelNotFound(f"{name!r} names no weights: write NAME/PRETRAINED, such as ViT-B-16-quickgelu/openai")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", UserWarning)  # a QuickGELU mismatch silently gives wrong features
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
    prepare = model.visual.preprocess_cfg
    size = prepare["size"]
    side = size if isinstance(size, int) else size[0]
    source = ClipSource(
        source=name,
        mean=tuple(prepare["mean"]),
        std=tuple(prepare["std"]),
        geometry=FrameGeometry(image_size=int(side), resize_mode=prepare.get("resize_mode", "shortest")),
    )
    model_cfg = open_clip.get_model_config(architecture) or {}
    return Clip(model.eval().requires_grad_(False), tokenizer, source, model_cfg)


def stored_clip(source: ClipSource, state: dict[str, Tensor]) -> Clip:
    """A CLIP whose weights lie in the checkpoint itself."""
    if source.model_cfg is None:
        raise CheckpointError("the checkpoint stores its CLIP but has no clip.model_cfg")
    model = open_clip.CLIP(**source.model_cfg)
    check_fits(state, model.state_dict())
    model.load_state_dict(state)
    tokenizer = open_clip.SimpleTokenizer(context_length=source.model_cfg["text_cfg"]["context_length"])
    return Clip(model.eval().requires_grad_(False), tokenizer, source, source.model_cfg)


def create_label_encoder(config: LabelEncoderConfig, clip: Clip) -> tuple[LabelEncoder, Path]:
    """The paper's label encoder with its LLM, and the folder that the LLM came from."""
    folder = fetch_llm(config.llm)
    return LabelEncoder(FrozenLLM.load(folder), ClipText(clip.model, clip.tokenizer), config), folder


def create_baseline_labels(
    method: Method, baseline: BaselineConfig, label: LabelEncoderConfig, clip: Clip
) -> tuple[ClipLabelEncoder, Path | None]:
    """The label encoder of a method that is not ours, and the folder of its LLM if it has one."""
    text = ClipText(clip.model, clip.tokenizer)
    if method == "coop":
        return CoOpLabelEncoder(
            text, num_context=baseline.num_context, words=baseline.context_words, seed=label.seed
        ), None
    if method == "dualcoop":
        return DualCoOpLabelEncoder(text, num_context=baseline.num_context, seed=label.seed), None
    if method == "fixed_llm":
        folder = fetch_llm(label.llm)
        llm = FrozenLLM.load(folder)
        return FixedLlmLabelEncoder(llm, text, prompt_version="v2", renormalize=label.renormalize), folder
    if method in ("class_name", "vificlip"):
        return ClassNameLabelEncoder(text, TEMPLATES[baseline.templates]), None
    raise ValueError(f"{method!r} is no baseline")


class TorchClassifier:
    """Encoders and scoring on one device (see ``vidlex.model.classifier.Classifier``)."""

    def __init__(
        self,
        *,
        id: str,
        fingerprint: str,
        video: VideoEncoder,
        label: LabelEncoder | ClipLabelEncoder,
        scorer: Scorer,
        geometry: FrameGeometry,
        default_threshold: float,
        device: str,
        precision: Precision,
        facts: dict[str, Any],
    ) -> None:
        self.id, self.fingerprint, self.device = id, fingerprint, device
        self.scorer, self.geometry, self.default_threshold = scorer, geometry, default_threshold
        self.num_frames = video.config.num_frames
        self.video = video.to(device).eval()
        self.label = label.to(device).eval()
        if isinstance(self.label, LabelEncoder):
            self.label.quicken()
        side = geometry.image_size
        chosen = choose_encoder(
            self.video, precision=precision, image_size=side, scorer=scorer, fingerprint=fingerprint
        )
        self._encoder = chosen.encoder
        self.facts = facts | {"encoder": chosen.name}
        self.dim = int(self.encode_video([np.zeros((1, side, side, 3), np.uint8)]).shape[1])

    def encode_video(self, frames: Sequence[NDArray[np.uint8]]) -> NDArray[np.float32]:
        """See Classifier. Videos of equal length share a pass of at most MAX_FRAMES_PER_PASS frames."""
        out: list[NDArray[np.float32] | None] = [None] * len(frames)
        by_length: dict[int, list[int]] = {}
        for index, video in enumerate(frames):
            by_length.setdefault(len(video), []).append(index)
        for length, members in by_length.items():
            per_pass = max(1, MAX_FRAMES_PER_PASS // length)
            for start in range(0, len(members), per_pass):
                chunk = members[start : start + per_pass]
                stacked = torch.from_numpy(np.stack([frames[i] for i in chunk]))
                features = self._encoder.encode_video(stacked.to(self.device)).cpu().numpy()
                for i, feature in zip(chunk, features, strict=True):
                    out[i] = feature
        return np.stack([f for f in out if f is not None])

    def check_label(self, name: str) -> None:
        self.label.check_label(name)

    def encode_labels(self, names: Sequence[str]) -> NDArray[np.float32]:
        features: NDArray[np.float32] = self.label.encode_labels(list(names)).float().cpu().numpy()
        return features

    def describe_labels(self, names: Sequence[str]) -> list[LabelDescription]:
        with torch.inference_mode():
            return self.label.describe_labels(list(names))

    def info(self) -> dict[str, Any]:
        return dict(self.facts)


def list_devices(wanted: str) -> list[str]:
    """What VIDLEX_DEVICE names: ``cuda:all`` is each GPU, a list has commas. Raises ValueError if there is no GPU."""
    if wanted != "cuda:all":
        return wanted.split(",")
    found = [f"cuda:{number}" for number in range(torch.cuda.device_count())]
    if not found:
        raise ValueError("cuda:all is asked for, and there is no GPU")
    return found


def load_classifier(spec: str, *, device: str = "auto", precision: Precision = "float32") -> Classifier:
    """``dummy``, a zoo name, a checkpoint folder, or ``open_clip:NAME`` zero-shot (frame mean, class-name prompts;
    ``open_clip+imagenet:NAME`` and its like choose the prompts, ``open_clip+llm:NAME`` has an LLM list attributes).

    ``precision`` is the video encoder's (``vidlex.model.video.precision``); labels are always encoded in float32.
    Raises ModelNotFound, CheckpointError, or what the LLM's fetching raises.
    """
    place = ("cuda" if torch.cuda.is_available() else "cpu") if device == "auto" else device
    dummy = create_dummy(spec)
    if dummy is not None:
        return dummy
    if spec.startswith(("open_clip:", "open_clip+")):
        return _zero_shot(spec, place, precision)
    folder = zoo_dir() / spec if spec in list_zoo() else Path(spec).expanduser()
    if not (folder / "config.json").is_file():
        raise ModelNotFound(
            f"no model {spec!r}: give a zoo name ({', '.join(list_zoo()) or 'none shipped'}), a checkpoint folder, "
            "open_clip:NAME/PRETRAINED, open_clip:local-dir:/path, or dummy"
        )
    return _from_checkpoint(folder, place, precision)


def _from_checkpoint(folder: Path, device: str, precision: Precision) -> Classifier:
    config, tensors, identity = load_checkpoint(folder)
    parts = {part: _strip(tensors, f"{part}.") for part in ("clip", "branch", "label")}
    if config.clip.source == "stored":
        clip = stored_clip(config.clip, parts["clip"])
    else:
        clip = create_clip(config.clip.source)
        if clip.digest != config.clip.digest:
            raise CheckpointError(
                f"the backbone {config.clip.source} has other weights than this checkpoint was trained on"
            )
    video = VideoEncoder(clip.model.visual, config.video, mean=config.clip.mean, std=config.clip.std)
    label: LabelEncoder | ClipLabelEncoder
    llm_folder: Path | None
    if config.method == "ours":
        label, llm_folder = create_label_encoder(config.label, clip)
    else:
        label, llm_folder = create_baseline_labels(config.method, config.baseline, config.label, clip)
    if llm_folder is not None and config.llm_digest not in (None, digest_llm(llm_folder)):
        raise CheckpointError(f"the LLM {config.label.llm} has other weights than this checkpoint was trained with")
    check_fits(parts["branch"], video.trainable())
    check_fits(parts["label"], label.trainable_state_dict())
    video.load_state_dict(parts["branch"], strict=False)
    label.load_state_dict(parts["label"], strict=False)
    video.with_frame_mean = config.method == "ours" and config.label.name_trust > 0
    facts = {
        "backbone": config.clip.source,
        "method": config.method,
        "llm": config.label.llm if llm_folder is not None else None,
        "branch_blocks": config.video.num_branch_blocks,
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
        facts=facts,
    )


def _zero_shot(spec: str, device: str, precision: Precision) -> Classifier:
    """Scores are CLIP's own ``logit_scale`` and ``logit_bias``; a CLIP trained with softmax has no bias of its own,
    so its logits are centred at a cosine of 0.25, a usual value of a matching pair, and not calibrated."""
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
    shown = Path(name).name if name.startswith("local-dir:") else name
    scale = float(clip.model.logit_scale.exp())
    bias = getattr(clip.model, "logit_bias", None)
    scorer = Scorer(scale, float(bias) if bias is not None else -0.25 * scale)
    identity = fingerprint(
        ENCODER_VERSION, clip.digest, prompts, list(clip.source.mean), list(clip.source.std),
        clip.source.geometry.image_size, clip.source.geometry.resize_mode,
    )  # fmt: skip
    return TorchClassifier(
        id=f"{kind}:{shown}",
        fingerprint=identity,
        video=video,
        label=label,
        scorer=scorer,
        geometry=clip.source.geometry,
        default_threshold=0.5,
        device=device,
        precision=precision,
        facts={"backbone": shown, "llm": LabelEncoderConfig().llm if llm_folder else None, "branch_blocks": 0},
    )


def _strip(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}
