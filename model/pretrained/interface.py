from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import Tensor, nn

from vidlex.model.scoring import Scorer


class VideoTextModel(nn.Module):
    """One transformers model that has one vector for a video and one for a text, of the same space.

    A subclass per family adapts it. ``model`` is its transformers class, in evaluation mode.
    """

    num_frames = 8  # default of a request
    has_fixed_num_frames = False  # other numbers of frames are brought to ``num_frames``
    reads_videos = True  # its processor is a video processor, not one of images
    pads_texts = True  # texts are padded to the model's text length, as in its training
    # False if the length of a text's feature is part of its score: texts have at most length 1, videos exactly that
    has_unit_features = True

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model

    @classmethod
    def load_network(cls, folder: Path, **options: Any) -> tuple[Any, dict[str, Any]]:
        """The model of transformers, and its report of missing weights."""
        from transformers import AutoModel

        loaded: tuple[Any, dict[str, Any]] = AutoModel.from_pretrained(folder, output_loading_info=True, **options)
        return loaded

    @property
    def max_text_tokens(self) -> int:
        return int(self.model.config.text_config.max_position_embeddings)

    def encode_pixels(self, pixels: Tensor) -> Tensor:
        """[B, T, 3, H, W] preprocessed -> [B, D] features."""
        raise NotImplementedError

    def encode_tokens(self, tokens: dict[str, Tensor]) -> Tensor:
        """``input_ids`` and, if the tokenizer makes it, ``attention_mask``: [V, n] -> [V, D] features."""
        raise NotImplementedError

    def scorer(self) -> Scorer:
        raise NotImplementedError
