"""Randomness that belongs to a sample, not to a batch, a worker or a device.

Every noise value is a pure function of (sample seed, step, role, position). It is drawn with the
counter-based generator Philox4x32-10, so a whole batch is drawn at once on the device where it is
needed, without generator state, and sample i never depends on its batch mates.
"""

import hashlib
import math

import torch
from torch import Tensor

# Roles: which of the method's noises is drawn. Part of the counter, so they never collide.
SOURCE, POSTERIOR, BOTTLENECK, STEP = range(4)

_MASK = 0xFFFFFFFF
_MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
_KEY_STEPS = (0x9E3779B9, 0xBB67AE85)


def derive_seed(*parts: int | str | bytes) -> int:
    """A 63-bit seed that depends on every part and on their order.

    Args:
        parts: integers, strings or bytes, such as ``rng_seed``, an image digest, a replica number.

    Returns:
        An integer in [0, 2**63).

    Raises:
        TypeError: a part is of another type.
    """
    digest = hashlib.sha256()
    for part in parts:
        if isinstance(part, bool) or not isinstance(part, int | str | bytes):
            raise TypeError(f"parts must be int, str or bytes, got {part!r}.")
        data = part if isinstance(part, bytes) else str(part).encode()
        # type and length in front: (1, "12") and ("1", 12) and ("11", 2) must all differ
        digest.update(f"{type(part).__name__}{len(data)}:".encode() + data)
    return int.from_bytes(digest.digest()[:8], "big") >> 1


def philox(counter: list[Tensor], key: list[Tensor]) -> list[Tensor]:
    """Philox4x32-10: four 32-bit words of counter and two of key to four random 32-bit words.

    Args:
        counter: four int64 tensors that broadcast together, values in [0, 2**32).
        key: two int64 tensors that broadcast with them, values in [0, 2**32).

    Returns:
        Four int64 tensors with values in [0, 2**32).

    Source: Salmon et al. 2011, "Parallel random numbers: as easy as 1, 2, 3".
    """
    c0, c1, c2, c3 = counter
    k0, k1 = key
    for _ in range(10):
        # int64 products wrap around, which keeps the low 64 bits exact; the mask drops the sign
        product_0, product_1 = c0 * _MULTIPLIERS[0], c2 * _MULTIPLIERS[1]
        c0, c1, c2, c3 = (
            ((product_1 >> 32) & _MASK) ^ c1 ^ k0,
            product_1 & _MASK,
            ((product_0 >> 32) & _MASK) ^ c3 ^ k1,
            product_0 & _MASK,
        )
        k0, k1 = (k0 + _KEY_STEPS[0]) & _MASK, (k1 + _KEY_STEPS[1]) & _MASK
    return [c0, c1, c2, c3]


def seeded_normal(seeds: Tensor, step: int | Tensor, role: int, shape: tuple[int, ...]) -> Tensor:
    """Standard normal noise, a row for each seed.

    Args:
        seeds: one seed per sample, (B,) int64, non-negative.
        step: number of the reverse step; an int or a 0-d integer tensor.
        role: which noise of the method this is, one of the constants of this module.
        shape: shape of one sample's noise.

    Returns:
        Noise, (B, *shape), float32, on the device of ``seeds``. Row i depends on ``seeds[i]``,
        ``step``, ``role`` and ``shape`` alone.

    Source: Philox as above, with the Box-Muller transform.
    """
    count = math.prod(shape)
    blocks = torch.arange(-(-count // 4), device=seeds.device)[None]
    zeros = torch.zeros_like(blocks)
    key = [(seeds & _MASK)[:, None], ((seeds >> 32) & _MASK)[:, None]]
    words = philox([blocks, zeros + step, zeros + role, zeros], key)
    # 24 bits fit a float32 exactly; + 0.5 keeps u above 0, where the logarithm is finite
    u = [((word >> 8).float() + 0.5) * 2**-24 for word in words]
    normals = []
    for radius_source, angle_source in ((u[0], u[1]), (u[2], u[3])):
        radius = (-2 * radius_source.log()).sqrt()
        normals += [radius * (2 * math.pi * angle_source).cos(),
                    radius * (2 * math.pi * angle_source).sin()]
    return torch.stack(normals, dim=-1).flatten(1)[:, :count].reshape(len(seeds), *shape)
