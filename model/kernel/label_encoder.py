"""Label encoder by kernel regression (``KernelConfig``): label names -> weights for the image tower's features.

d is the width of the LLM's states, P the number of prompts, R ``rank``, J the number of landmarks, S the numbers that
are predicted for a label: its weights for the tower's features, its bias, and its weights for the motion's logits.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vidlex.model.classifier import LabelDescription
from vidlex.model.config import KernelConfig
from vidlex.model.kernel.prompt_states import PromptStates
from vidlex.model.text.llm import FrozenLLM


class KernelLabelEncoder(nn.Module):
    """``state_dict`` has what is learned, as buffers of the shapes that ``config`` gives. The LLM is not a submodule,
    but ``to(device)`` moves it too.

    ``check_label`` and methods that encode raise LabelTextError for a name that cannot be encoded whole.
    """

    state_mean: Tensor
    state_std: Tensor
    projection: Tensor
    kinds: Tensor
    landmarks: Tensor
    landmark_kinds: Tensor
    alpha: Tensor
    offset: Tensor

    def __init__(self, llm: FrozenLLM, config: KernelConfig) -> None:
        super().__init__()
        self.config = config
        self.prompt_states = PromptStates(llm, config.prompts)
        p, d, width = len(config.prompts), llm.width, len(config.prompts) * config.rank
        num_outputs = config.num_channels + 1 + config.num_motion_labels
        shapes: dict[str, tuple[int, ...]] = {
            "state_mean": (p, d),
            "state_std": (p, d),
            "projection": (p, d, config.rank),
            "landmarks": (config.num_landmarks, width),
            "alpha": (config.num_landmarks, num_outputs),
            "offset": (num_outputs,),
        }
        if config.kind_width:
            shapes |= {"kinds": (width, config.kind_width), "landmark_kinds": (config.num_landmarks, config.kind_width)}
        for name, shape in shapes.items():
            self.register_buffer(name, torch.zeros(shape))
        super().to(llm.device)

    @property
    def llm(self) -> FrozenLLM:
        return self.prompt_states.llm

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> KernelLabelEncoder:
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        self.llm.model._apply(fn)
        self.prompt_states.reset()
        return self

    def optimize_for_inference(self) -> None:
        self.llm.optimize_for_inference()
        self.prompt_states.reset()

    @property
    def dim(self) -> int:
        return self.config.dim

    def trainable_state_dict(self) -> dict[str, Tensor]:
        return dict(self.state_dict())

    def states(self, names: Sequence[str], *, progress: Callable[[int], None] | None = None) -> Tensor:
        """[V, P, d] float32 on the CPU."""
        return self.prompt_states.states(names, progress=progress)

    @torch.no_grad()
    def coordinates(self, states: Tensor) -> tuple[Tensor, Tensor | None]:
        """States [V, P, d] -> what the kernels compare: [V, P * R], and unit vectors of kinds [V, ``kind_width``]."""
        x = F.normalize((states.to(self.offset.device) - self.state_mean) / self.state_std, dim=-1)
        coordinates = torch.einsum("vpd,pdr->vpr", x, self.projection).flatten(1) / len(self.config.prompts) ** 0.5
        return coordinates, F.normalize(coordinates @ self.kinds, dim=-1) if self.config.kind_width else None

    @torch.no_grad()
    def similarities(self, states: Tensor) -> Tensor:
        """Product of the kernels, of labels with states [V, P, d] and the landmarks: [V, J], 0 to 1."""
        coordinates, kinds = self.coordinates(states)
        exponent = -self.config.state_scale / 2 * _square_distances(coordinates, self.landmarks)
        if kinds is not None:
            exponent -= self.config.kind_scale / 2 * _square_distances(kinds, self.landmark_kinds)
        return exponent.exp()

    @torch.no_grad()
    def forward_from_states(self, states: Tensor) -> Tensor:
        """States of labels [V, P, d] -> their features [V, D], of length at most 1."""
        config = self.config
        outputs = self.similarities(states) @ self.alpha + self.offset  # [V, S]
        n = config.num_channels
        weights, bias, motion = outputs[:, :n], outputs[:, n : n + 1], outputs[:, n + 1 :]
        weights = config.slope * weights / weights.norm(dim=1, keepdim=True).clamp_min(1e-6) ** config.norm_power
        bias = config.bias_scale * bias + config.bias_shift
        parts = [weights, bias / config.constant]
        if config.motion is not None:
            parts += [motion / config.motion_weight, torch.zeros_like(bias)]
        features = torch.cat(parts, dim=1).div_(config.max_logit)
        return features.div_(features.norm(dim=1, keepdim=True).clamp_min(1))

    def check_label(self, name: str) -> None:  # tokenises only
        self.prompt_states.check(name)

    def encode_labels(self, names: Sequence[str], *, progress: Callable[[int], None] | None = None) -> Tensor:
        for name in names:
            self.check_label(name)  # all of them before the first pass
        if not names:
            return torch.zeros(0, self.dim)
        return self.forward_from_states(self.states(names, progress=progress)).float().cpu()  # [V, D]

    def describe_labels(self, names: Sequence[str]) -> list[LabelDescription]:
        for name in names:
            self.check_label(name)
        texts = self.prompt_states.decoded_texts(names)
        return [
            LabelDescription(
                tuple(prompt.text(name) for prompt in self.prompt_states.prompts),
                tuple((text,) for text in decoded),
            )
            for name, decoded in zip(names, texts, strict=True)
        ]


def _square_distances(a: Tensor, b: Tensor) -> Tensor:  # [V, n] and [J, n] -> [V, J]
    distances = a.square().sum(dim=1, keepdim=True) + b.square().sum(dim=1) - 2 * a @ b.T
    return distances.clamp_min_(0)
