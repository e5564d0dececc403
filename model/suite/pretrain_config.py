"""Settings of the pretraining. The field docstrings are the help texts of ``vidlex train pretrain``."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class PretrainConfig:
    """The defaults suit two CPU cores."""

    image_size: int = 96
    """Side of the pictures, in pixels."""
    patch_size: int = 16
    """Side of a patch, in pixels."""
    embed_dim: int = 192
    """Dimensions of the shared feature space."""
    vision_width: int = 192
    """Width of the image tower; a multiple of 32."""
    vision_layers: int = 6
    """Blocks of the image tower."""
    text_width: int = 128
    """Width of the text tower; a multiple of 32."""
    text_layers: int = 3
    """Blocks of the text tower."""
    num_image_steps: int = 3600
    """Steps of the image stage."""
    batch_size: int = 128
    """Pictures per step of the image stage."""
    image_learning_rate: float = 1e-3
    """Peak learning rate of the image stage."""
    num_text_steps: int = 800
    """Steps of the text stage."""
    text_batch_size: int = 256
    """Pictures per step of the text stage."""
    text_learning_rate: float = 1e-3
    """Peak learning rate of the text stage."""
    num_cached_pictures: int = 24000
    """Pictures whose features the text stage uses."""
    num_steps_drawn: int = 1
    """Steps of the image stage whose pictures are rendered in one call; more are faster on a GPU."""
    weight_decay: float = 0.05
    """AdamW weight decay of matrices."""
    bf16: bool | None = None
    """bfloat16 autocast; by default the faster precision, measured at the start of the run."""
    device: str = "cpu"
    """PyTorch device, such as cpu or cuda."""
    seed: int = 0
    """Seed of the initial weights and of the training data."""
    start: str = ""
    """An open_clip model (local-dir:FOLDER) of this architecture to start from; by default random weights."""

    def architecture(self) -> dict[str, Any]:
        """In the form of ``open_clip/model_configs/*.json``."""
        return {
            "embed_dim": self.embed_dim,
            "vision_cfg": {
                "image_size": self.image_size,
                "layers": self.vision_layers,
                "width": self.vision_width,
                "head_width": 32,
                "patch_size": self.patch_size,
            },
            "text_cfg": {
                "context_length": 77,
                "vocab_size": 49408,
                "width": self.text_width,
                "heads": self.text_width // 32,
                "layers": self.text_layers,
            },
        }
