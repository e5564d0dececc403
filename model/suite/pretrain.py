"""Pretraining of a small CLIP, which replaces web-scale CLIP where no weights can be fetched.

There are two stages, because contrastive training from scratch learns slowly at this size:

1. *image*: the image tower classifies still pictures against a table of class vectors (noun, hypernym and scene
   names), by cross-entropy with the probability shared by the true names;
2. *text* (locked-image tuning, Zhai et al. 2022): the image tower is frozen, and the text tower learns to align
   captions and names with the images.

Actions are never named: CLIP has no knowledge of them before fine-tuning.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path

import open_clip
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vidlex.model.emoji.assets import SpriteSheet, load_sheet
from vidlex.model.emoji.world import Sample, World
from vidlex.model.factory import create_clip
from vidlex.model.seeds import Stream, generator_for, seed_for
from vidlex.model.suite.pretrain_config import PretrainConfig
from vidlex.model.text.clip_text import ClipText
from vidlex.model.train.export import write_open_clip_folder
from vidlex.model.train.loop.config import LoopConfig
from vidlex.model.train.loop.loop import console, run
from vidlex.model.train.loop.optim import ParameterGroup, make_optimizer
from vidlex.model.train.loop.precision import choose_bf16

CACHED_SEED, VALIDATION_SEED = 77_000_000, 5  # of the text stage
PIXEL_MEAN = (0.48145466, 0.4578275, 0.40821073)  # open_clip's OPENAI_DATASET_MEAN and STD
PIXEL_STD = (0.26862954, 0.26130258, 0.27577711)

TEMPLATES = ("{}", "a {}", "a photo of a {}", "a picture of a {}", "a drawing of a {}", "there is a {} here")


class ImageTask:
    name = "image"

    def __init__(self, clip: open_clip.CLIP, worlds: Mapping[str, World], config: PretrainConfig) -> None:
        self.worlds, self.config = worlds, config
        self.num_names = len(worlds["train"].labels)
        # The table is discarded after this stage.
        table = nn.Parameter(torch.randn(self.num_names, config.embed_dim, device=config.device) * 0.02)
        scale = nn.Parameter(torch.tensor(2.7, device=config.device))  # exp(2.7) = 15
        self.module = nn.Module()
        self.module.visual = clip.visual
        self.module.table, self.module.scale = table, scale
        self.table, self.scale, self.visual = table, scale, clip.visual
        self._drawn: tuple[int, Sample] | None = None
        self.optimizer = make_optimizer(
            [ParameterGroup(list(self.module.parameters()), config.image_learning_rate)],
            weight_decay=config.weight_decay,
            betas=(0.9, 0.98),
        )

    def _logits(self, pictures: Tensor) -> Tensor:
        # [B, 3, H, W] uint8 -> [B, names]
        image = F.normalize(self.visual(to_pixels(pictures, self.config.device)).float(), dim=-1)  # [B, D]
        return image @ F.normalize(self.table, dim=-1).T * self.scale.exp()  # [B, names]

    def training_step(self, step: int) -> tuple[Tensor, Mapping[str, float]]:
        sample, rows = self._pictures(step)
        logits = self._logits(sample.frames[rows, 0])
        loss = shared_cross_entropy(logits, sample.targets[rows].to(logits.device))
        return loss, {}

    def _pictures(self, step: int) -> tuple[Sample, slice]:
        # Draws ``num_steps_drawn`` steps at once.
        size, num_steps = self.config.batch_size, self.config.num_steps_drawn
        first = step - step % num_steps
        if self._drawn is None or self._drawn[0] != first:
            world = self.worlds["train"]
            generator = world.generator(seed_for(self.config.seed, Stream.PRETRAINING, first))
            self._drawn = (first, world.pictures(size * num_steps, generator))
        return self._drawn[1], slice((step - first) * size, (step - first + 1) * size)

    @torch.no_grad()
    def evaluate(self) -> Mapping[str, float]:
        # R-precision of the nouns on unseen pictures.
        world = self.worlds["val"]
        kinds = world.kinds()
        is_noun = torch.tensor([kinds[name] == "noun" for name in world.labels])
        self.visual.eval()
        hits = total = 0
        for seed in range(4):
            sample = world.pictures(128, world.generator(seed))
            logits = self._logits(sample.frames[:, 0]).cpu()[:, is_noun]
            nouns = sample.targets[:, is_noun]
            for row, truth in zip(logits, nouns, strict=True):
                k = int(truth.sum())
                hits += int(truth[row.topk(k).indices].sum())
                total += k
        self.visual.train()
        return {"noun_recall": hits / total}


class TextTask:
    name = "text"

    def __init__(self, clip: open_clip.CLIP, worlds: Mapping[str, World], config: PretrainConfig) -> None:
        self.clip, self.config = clip, config
        self.text = ClipText(clip, open_clip.SimpleTokenizer(context_length=77))
        clip.visual.requires_grad_(False).eval()
        world = worlds["train"]
        self.names = world.labels
        self.image, self.targets = self._features(world, config.num_cached_pictures, seed=CACHED_SEED)
        self.val_image, self.val_targets = self._features(worlds["val"], 512, seed=VALIDATION_SEED)
        self.module = clip
        text = [p for p in clip.parameters() if p.requires_grad]
        self.optimizer = make_optimizer(
            [ParameterGroup(text, config.text_learning_rate)], weight_decay=config.weight_decay, betas=(0.9, 0.98)
        )

    @torch.no_grad()
    def _features(self, world: World, num: int, seed: int) -> tuple[Tensor, Tensor]:
        # unit [n, D], [n, names]
        features, targets = [], []
        for chunk in range((num + 255) // 256):
            sample = world.pictures(256, world.generator(seed + chunk))
            pixels = to_pixels(sample.frames[:, 0], self.config.device)
            with torch.autocast(pixels.device.type, dtype=torch.bfloat16, enabled=bool(self.config.bf16)):
                features.append(F.normalize(self.clip.visual(pixels).float(), dim=-1))
            targets.append(sample.targets.to(self.config.device))
        return torch.cat(features), torch.cat(targets)

    def _encode(self, texts: Sequence[str]) -> Tensor:
        return F.normalize(self.text.encode(texts), dim=-1)

    def training_step(self, step: int) -> tuple[Tensor, Mapping[str, float]]:
        generator = generator_for(self.config.seed, Stream.PRETRAINING, step)
        drawn = torch.randint(0, len(self.image), (self.config.text_batch_size,), generator=generator)
        image, targets = self.image[drawn], self.targets[drawn]
        template = torch.randint(0, len(TEMPLATES), (len(self.names),), generator=generator).tolist()
        texts = [TEMPLATES[t].format(name) for t, name in zip(template, self.names, strict=True)]
        scale = self.clip.logit_scale.exp()
        by_name = shared_cross_entropy(image @ self._encode(texts).T * scale, targets)
        num_captions = min(96, len(image))
        shown = [[self.names[i] for i in row.nonzero()[:, 0].tolist()] for row in targets[:num_captions].cpu()]
        captions = [caption(names, generator) for names in shown]
        logits = image[:num_captions] @ self._encode(captions).T * scale  # [num_captions, num_captions]
        diagonal = torch.arange(num_captions, device=logits.device)
        by_caption = (F.cross_entropy(logits, diagonal) + F.cross_entropy(logits.T, diagonal)) / 2
        return by_name + 0.3 * by_caption, {"by_name": by_name.item(), "by_caption": by_caption.item()}

    @torch.no_grad()
    def evaluate(self) -> Mapping[str, float]:
        # Zero-shot R-precision, with one template.
        logits = (self.val_image @ self._encode([f"a photo of a {name}" for name in self.names]).T).cpu()
        recall = []
        for row, truth in zip(logits, self.val_targets.cpu(), strict=True):
            k = int(truth.sum())
            recall.append(int(truth[row.topk(k).indices].sum()) / k)
        return {"name_recall": sum(recall) / len(recall)}


def shared_cross_entropy(logits: Tensor, targets: Tensor) -> Tensor:
    """The true names share the probability equally. [B, V] logits and bool targets."""
    share = targets.float() / targets.sum(dim=1, keepdim=True)
    return -(share * F.log_softmax(logits.float(), dim=1)).sum(dim=1).mean()


def caption(names: Sequence[str], generator: torch.Generator) -> str:
    """A random subset in random order, such as "a dog and a food and a beach"."""
    order = torch.randperm(len(names), generator=generator).tolist()
    num_named = int(torch.randint(1, len(names) + 1, (1,), generator=generator))
    return "a " + " and a ".join(names[i] for i in order[:num_named])


def to_pixels(frames: Tensor, device: str) -> Tensor:
    """[..., 3, H, W] uint8 -> normalised float32 on ``device``."""
    mean = torch.tensor(PIXEL_MEAN, device=device).view(3, 1, 1) * 255
    std = torch.tensor(PIXEL_STD, device=device).view(3, 1, 1) * 255
    return (frames.to(device).float() - mean) / std


def main(config: PretrainConfig, out: Path, art_cache: Path, *, sheet: SpriteSheet | None = None) -> Path:
    """Resumes from the state in ``out``, and writes an open_clip folder, ``out/clip``."""
    torch.manual_seed(config.seed)
    clip = open_clip.CLIP(**config.architecture()).to(config.device)
    sheet = sheet if sheet is not None else load_sheet(art_cache)
    worlds = {
        split: World(
            art_cache, canvas=config.image_size, split=split, part="pretrain", sheet=sheet, device=config.device
        )
        for split in ("train", "val")
    }
    if config.start:
        clip.load_state_dict(create_clip(config.start).model.state_dict())
    grey = torch.full((8, 3, config.image_size, config.image_size), 127, dtype=torch.uint8)
    bf16 = choose_bf16(
        config.bf16, clip.visual, lambda: clip.visual(to_pixels(grey, config.device)), config.device, out
    )
    config = replace(config, bf16=bf16)
    description = asdict(config)
    loop = LoopConfig(config.num_image_steps, bf16=bf16)
    run(ImageTask(clip, worlds, config), loop, out, description)
    loop = LoopConfig(config.num_text_steps, num_warmup_steps=50, evaluate_every=200, bf16=bf16)
    run(TextTask(clip, worlds, config), loop, out, description)
    folder = write_open_clip_folder(clip, config.architecture(), PIXEL_MEAN, PIXEL_STD, out / "clip")
    console.print(f"wrote {folder}")
    return folder
