"""Embeddings from several levels of a PyTorch network. Only import this where torch runs."""

from collections import OrderedDict

import torch
from torch import nn
from torch.nn import functional


class Levels(nn.Sequential):
    """Blocks, one after the other, of which the last `count` each contribute to the embedding (n, features).

    A block contributes the means of its channels over all positions, scaled to length 1.
    """

    def __init__(self, blocks: OrderedDict[str, nn.Module], count: int) -> None:
        super().__init__(blocks)
        self.count = count

    def forward(self, input: torch.Tensor) -> torch.Tensor:  # noqa: A002 - torch's name
        """The embedding of the first block's input (n, channels, height, width)."""
        output, means = input, []
        for number, block in enumerate(self, self.count - len(self)):
            output = block(output)
            if number >= 0:
                means.append(functional.normalize(output.mean((2, 3)), dim=1))
        return torch.cat(means, 1)
