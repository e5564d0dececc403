"""The interface between an image tower and the temporal branch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from torch import Tensor, nn


class Tower(Protocol):
    """An image tower as tokens, blocks and pooling: ``pool(blocks(embed(pixels)))`` is the tower's own feature.

    An adapter owns no weights: the tower's module is registered elsewhere. N tokens of ``width`` stand for one frame.

    In the paper the tower is CLIP's: the branch copies its last blocks, and TMP starts as the CLS token. Beyond the
    paper: where another token or several tokens are pooled, they take TMP's place, and their pooled value that of
    TMP's output; a tower without transformer blocks gets new ones after its feature map.
    """

    width: int
    attention_width: int  # of queries, keys and values in the temporal attention
    num_heads: int  # of the temporal attention
    blocks: Sequence[nn.Module]  # the tower's own transformer blocks; empty for a convolutional tower
    pooled: slice  # the tokens that ``pool`` reads; TMP is one per frame where only CLS is pooled

    def embed(self, pixels: Tensor) -> Tensor:
        """[n, 3, H, W] -> [n, N, width], the input of the first block."""
        ...

    def run_block(self, block: nn.Module, x: Tensor, *, depth: int, last: bool = False) -> Tensor:
        """[n, N, width] -> the same. ``block`` is the tower's block at ``depth`` or the branch's in its place.

        With ``last`` the result goes to ``pool`` alone, and may have only the pooled tokens.
        """
        ...

    def branch_block(self, depth: int) -> nn.Module:
        """The spatial block of the branch parallel to ``depth``: a copy of the tower's block, or a new one."""
        ...

    def pool(self, x: Tensor) -> Tensor:
        """[n, N, width] -> [n, D]: the tower's last norm, pooling and projection."""
        ...
