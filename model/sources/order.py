"""Which video stands at which place of a run: a function of seed and place alone."""

from __future__ import annotations

import torch
from torch import Tensor

from vidlex.model.seeds import Stream, generator_for
from vidlex.model.sources.catalogue import Catalogue


def draw_weights(catalogue: Catalogue, rare_label_power: float) -> Tensor:
    """[n] float64 with mean 1: how often each video is drawn per epoch.

    With a power, a video counts as much as its rarest label, ``max_l count_l ** -power``, as in the repeat factor of
    LVIS (Gupta et al., CVPR 2019). Videos without positives count as those of the most frequent label.
    """
    factors: list[float] = (catalogue.num_positives().double().clamp_min(1) ** -rare_label_power).tolist()
    least = min(factors)
    weights = [
        catalogue.datasets[video.dataset].weight * max([factors[i] for i in video.positives], default=least)
        for video in catalogue.videos
    ]
    found = torch.tensor(weights, dtype=torch.float64)
    return found / found.mean()


class DrawOrder:
    """Epochs of n places. In each, video i has its weight's number of places, rounded up or down at random.

    Rounding is by systematic sampling: with equal weights each video has one place.
    """

    def __init__(self, weights: Tensor, seed: int) -> None:
        self.ends = weights.cumsum(0)
        self.seed = seed
        self._epoch: tuple[int, list[int]] = (-1, [])

    def at(self, place: int) -> int:
        epoch, position = divmod(place, len(self.ends))
        if self._epoch[0] != epoch:
            self._epoch = (epoch, self._order(epoch))
        return self._epoch[1][position]

    def _order(self, epoch: int) -> list[int]:
        num = len(self.ends)
        generator = generator_for(self.seed, Stream.POOL_ORDER, epoch)
        offset = torch.rand((), generator=generator, dtype=torch.float64)
        edges = (self.ends + offset).floor().long().clamp_max(num)
        edges[-1] = num
        counts = edges.diff(prepend=edges.new_zeros(1))
        rows = torch.repeat_interleave(torch.arange(num), counts)
        order: list[int] = rows[torch.randperm(num, generator=generator)].tolist()
        return order
