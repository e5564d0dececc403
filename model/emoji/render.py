"""Compositing sprites onto backgrounds: one ``grid_sample`` per layer for a whole batch of frames."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from vidlex.model.emoji.motion import Pose


def render(background: Tensor, layers: Tensor, pose: Pose) -> Tensor:
    """Draw ``S`` sprites per video, the last one on top. Returns [B, T, 3, H, W] uint8.

    ``background`` [B, 3, H, W] uint8; ``layers`` [B, S, 4, h, w] uint8 RGBA with straight alpha; ``pose`` [B, S, T].
    """
    b, s = layers.shape[:2]
    t = pose.x.shape[-1]
    height, width = background.shape[-2:]
    canvas = background.float()[:, None].expand(b, t, 3, height, width)
    straight = layers.float()
    alpha = straight[:, :, 3:] / 255.0
    sprites = torch.cat((straight[:, :, :3] * alpha, alpha), dim=2)  # [B, S, 4, h, w], premultiplied
    for layer in range(s):
        theta = _inverse_affine(pose, layer).reshape(b * t, 2, 3)
        grid = F.affine_grid(theta, [b * t, 4, height, width], align_corners=False)
        image = sprites[:, layer, None].expand(b, t, *sprites.shape[2:]).reshape(b * t, *sprites.shape[2:])
        drawn = F.grid_sample(image, grid, mode="bilinear", padding_mode="zeros", align_corners=False)
        drawn = drawn.view(b, t, 4, height, width) * pose.alpha[:, layer, :, None, None, None]
        canvas = drawn[:, :, :3] + canvas * (1.0 - drawn[:, :, 3:])  # [B, T, 3, H, W]
    return canvas.round_().clamp_(0, 255).to(torch.uint8)


def _inverse_affine(pose: Pose, layer: int) -> Tensor:  # [B, T, 2, 3], canvas to sprite coordinates
    x, y = pose.x[:, layer], pose.y[:, layer]
    size = pose.size[:, layer].clamp_min(1e-3)
    cos, sin = pose.angle[:, layer].cos() / size, pose.angle[:, layer].sin() / size
    stretch = pose.stretch[:, layer]
    width = torch.where(stretch < 0, -1.0, 1.0) * stretch.abs().clamp_min(0.05)
    first = torch.stack((cos, sin, -(cos * x + sin * y)), dim=-1) / width[..., None]
    second = torch.stack((-sin, cos, sin * x - cos * y), dim=-1)
    return torch.stack((first, second), dim=-2)


def crop_backgrounds(bank: Tensor, scene: Tensor, size: int, generator: torch.Generator) -> Tensor:
    """[B, 3, size, size] uint8 on the bank's device: a random image, crop and mirroring for each of ``scene`` [B].

    A crop covers at most two thirds of the image's side; for a larger canvas it is scaled up.
    """
    n, num_images, side = scene.shape[0], bank.shape[1], bank.shape[-1]
    canvas, size = size, min(size, side * 2 // 3)
    image = torch.randint(0, num_images, (n,), generator=generator)
    offset = torch.randint(0, side - size + 1, (n, 2), generator=generator)
    is_mirrored = torch.rand(n, generator=generator) < 0.5
    along = torch.arange(size)
    rows = offset[:, :1] + along  # [B, size]
    columns = offset[:, 1:] + torch.where(is_mirrored[:, None], along.flip(0), along)  # [B, size]
    indices = (scene[:, None, None], image[:, None, None], rows[:, :, None], columns[:, None, :])
    scenes, images, y, x = (index.to(bank.device) for index in indices)
    crops = bank[scenes, images, :, y, x].permute(0, 3, 1, 2)  # [B, size, size, 3] -> [B, 3, size, size]
    if canvas == size:
        return crops
    return F.interpolate(crops.float(), size=(canvas, canvas), mode="bilinear").round_().to(torch.uint8)
