"""Images that no tiny prior knows."""

import torch


def squares(count: int, channels: int = 1, size: int = 16) -> torch.Tensor:
    """Images (count, channels, size, size) in [0, 1]: a bright square, left or right in turn."""
    generator = torch.Generator().manual_seed(0)
    images = 0.1 * torch.rand(count, channels, size, size, generator=generator)
    for number, image in enumerate(images):
        left = size // 8 if number % 2 == 0 else size // 2
        image[:, size // 4 : 3 * size // 4, left : left + 3 * size // 8] = 0.9
    return images
