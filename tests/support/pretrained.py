"""Tiny video-text models of transformers with random weights, as folders in the hub's layout."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from tokenizers import pre_tokenizers
from transformers import (
    CLIPConfig,
    CLIPImageProcessor,
    CLIPModel,
    CLIPTokenizer,
    LlavaOnevisionVideoProcessor,
    PeAudioVideoConfig,
    PeAudioVideoModel,
    PeVideoVideoProcessor,
    Siglip2Config,
    Siglip2ImageProcessor,
    Siglip2Model,
    SiglipConfig,
    SiglipImageProcessor,
    SiglipModel,
    VideoPrismClipModel,
    VideoPrismConfig,
    VideoPrismTokenizer,
    XCLIPConfig,
    XCLIPModel,
)

from support.tiny import write_byte_tokenizer

SIDE = 16
MEAN, STD = [0.48, 0.46, 0.41], [0.27, 0.26, 0.28]
TEXT = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2}
TEXT |= {"max_position_embeddings": 48}
VISION = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2}
VISION |= {"image_size": SIDE, "patch_size": 8}


Model = TypeVar("Model")


def _seeded(write: Callable[[Path], Model]) -> Callable[[Path], Model]:
    @wraps(write)
    def run(folder: Path) -> Model:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            return write(folder)

    return run


def random_videos(*lengths: int, side: int = SIDE) -> list[NDArray[np.uint8]]:
    generator = np.random.default_rng(0)
    return [generator.integers(0, 256, (length, side, side, 3), dtype=np.uint8) for length in lengths]


@_seeded
def write_clip(folder: Path) -> Path:
    text = TEXT | {"vocab_size": _write_clip_tokenizer(folder), "eos_token_id": 513, "bos_token_id": 512}
    model = CLIPModel(CLIPConfig(text_config=text, vision_config=VISION, projection_dim=24))
    size = {"shortest_edge": SIDE + 4}  # larger than the crop
    processor = CLIPImageProcessor(size=size, crop_size={"height": SIDE, "width": SIDE}, image_mean=MEAN, image_std=STD)
    return _save(folder, model, processor)


@_seeded
def write_siglip(folder: Path) -> Path:
    text = TEXT | {"vocab_size": write_byte_tokenizer(folder, end_with_eos=True), "projection_size": 32}
    model = SiglipModel(SiglipConfig(text_config=text, vision_config=VISION))
    return _save(folder, model, SiglipImageProcessor(size={"height": SIDE, "width": SIDE}))


@_seeded
def write_siglip2(folder: Path) -> Path:
    text = TEXT | {"vocab_size": write_byte_tokenizer(folder, end_with_eos=True), "projection_size": 32}
    vision = {name: value for name, value in VISION.items() if name != "image_size"} | {"num_patches": 9}
    model = Siglip2Model(Siglip2Config(text_config=text, vision_config=vision))
    # 5 patches: 2 rows of 2, and one of padding
    return _save(folder, model, Siglip2ImageProcessor(patch_size=8, max_num_patches=5))


@_seeded
def write_xclip(folder: Path) -> Path:
    text = TEXT | {"vocab_size": _write_clip_tokenizer(folder)}
    vision = VISION | {"num_frames": 4, "mit_hidden_size": 24, "mit_intermediate_size": 32}
    vision |= {"mit_num_attention_heads": 2}
    config = XCLIPConfig(text_config=text, vision_config=vision, projection_dim=24, prompt_num_attention_heads=2)
    size = {"shortest_edge": SIDE}
    processor = CLIPImageProcessor(size=size, crop_size={"height": SIDE, "width": SIDE}, image_mean=MEAN, image_std=STD)
    return _save(folder, XCLIPModel(config), processor)


@_seeded
def write_videoprism(folder: Path) -> Path:
    letters = [(letter, -3.0) for letter in "abcdefghijklmnopqrstuvwxyz."]
    specials = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", -9.0), ("▁", -2.0)]
    tokenizer = VideoPrismTokenizer(vocab=[*specials, *letters], extra_ids=1)
    tokenizer.save_pretrained(folder)
    vision = {"hidden_size": 32, "intermediate_size": 64, "num_attention_heads": 4, "image_size": SIDE}
    vision |= {"num_frames": 5, "tubelet_size": [1, 8, 8], "num_spatial_layers": 2, "num_temporal_layers": 1}
    config = VideoPrismConfig(text_config=TEXT | {"vocab_size": len(tokenizer)}, vision_config=vision)
    processor = LlavaOnevisionVideoProcessor(size={"height": SIDE, "width": SIDE}, do_normalize=False)
    return _save(folder, VideoPrismClipModel(config), processor)


def write_pe_av(folder: Path) -> Path:
    tiny_pe_av(folder)
    return folder


@_seeded
def tiny_pe_av(folder: Path) -> PeAudioVideoModel:
    """Writes the folder, with the audio part, and returns its model, which transformers cannot load with every timm."""
    text = TEXT | {"vocab_size": write_byte_tokenizer(folder, end_with_eos=True), "pad_token_id": 1}
    text |= {"bos_token_id": 1, "eos_token_id": 1, "cls_token_id": 1, "sep_token_id": 1}
    layers = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2}
    layers |= {"head_dim": 16}
    tower = {"architecture": "vit_pe_core_tiny_patch16_384", "num_classes": 12}
    tower |= {"model_args": {"embed_dim": 32, "depth": 1, "num_heads": 2, "img_size": [SIDE, SIDE], "patch_size": 8}}
    dac = {"encoder_hidden_size": 4, "downsampling_ratios": [2, 4], "codebook_dim": 8}
    parts = {"video_config": layers | {"vision_config": tower}, "audio_config": layers | {"dac_config": dac}}
    model = PeAudioVideoModel(PeAudioVideoConfig(text_config=text, audio_video_config=layers | parts))
    steps = {"do_resize": True, "do_rescale": True, "do_normalize": True}  # its class has none of them
    size = {"height": SIDE, "width": SIDE}
    processor = PeVideoVideoProcessor(size=size, image_mean=MEAN, image_std=STD, num_frames=6, **steps)
    _save(folder, model, processor, logit_scale=0.25)
    return model.eval()


WRITERS: dict[str, Callable[[Path], Path]] = {
    "clip": write_clip,
    "pe_audio_video": write_pe_av,
    "siglip": write_siglip,
    "siglip2": write_siglip2,
    "videoprism": write_videoprism,
    "xclip": write_xclip,
}


def _write_clip_tokenizer(folder: Path) -> int:
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokens = [*alphabet, *(f"{token}</w>" for token in alphabet), "<|startoftext|>", "<|endoftext|>"]
    CLIPTokenizer(vocab={token: i for i, token in enumerate(tokens)}, merges=[]).save_pretrained(folder)
    return len(tokens)


def _save(folder: Path, model: Any, processor: Any, logit_scale: float = 1.25) -> Path:
    """With weights large enough for a wrong frame, pixel or token to change the features."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "logit" not in name:
                parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.2)
            elif "bias" in name:
                parameter.fill_(-1.5)
            else:
                parameter.fill_(logit_scale)
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder
