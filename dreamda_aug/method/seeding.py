"""Randomness that belongs to a sample, not to a batch, a worker or a device.

Every noise value is a pure function of (sample seed, step, role, position). It is drawn with the
counter-based generator Philox4x32-10, so a whole batch is drawn at once on the device where it is
needed, without generator state, and sample i never depends on its batch mates.
"""

import contextlib
import hashlib
import math
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

# Roles: which of the method's noises is drawn. Part of the counter, so they never collide.
SOURCE, POSTERIOR, BOTTLENECK, STEP = range(4)

# Noise values that are drawn in one go.
_AT_ONCE = 2**20

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


@contextlib.contextmanager
def seeded(seed: int, device: torch.device) -> Iterator[None]:
    """torch's global generators, of the CPU and ``device``, seeded inside and restored afterwards.

    For what draws from no other: a network's first weights, dropout, torchvision's transforms.
    """
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        torch.manual_seed(seed)
        yield


def philox(counter: list[Tensor], key: list[Tensor]) -> list[Tensor]:
    """Philox4x32-10: four 32-bit words of counter and two of key to four random 32-bit words.

    Args:
        counter: four int64 tensors that broadcast together, values in [0, 2**32).
        key: two int64 tensors that broadcast with them, values in [0, 2**32).

    Returns:
        Four int64 tensors with values in [0, 2**32).

    Source: Salmon et al. 2011, "Parallel random numbers: as easy as 1, 2, 3".
    """
    c0, c1, c2, c3, _, _ = torch.broadcast_tensors(*counter, *key)
    rounds = torch.arange(10, device=c0.device)
    k0, k1 = ((word[..., None] + rounds * step) & _MASK
              for word, step in zip(key, _KEY_STEPS, strict=True))
    for turn in range(10):
        # int64 products wrap around, which keeps the low 64 bits exact; the mask drops the sign
        product_0, product_1 = c0 * _MULTIPLIERS[0], c2 * _MULTIPLIERS[1]
        # in place: on a CPU, memory is what this loop waits for
        c0 = (product_1 >> 32).bitwise_and_(_MASK).bitwise_xor_(c1).bitwise_xor_(k0[..., turn])
        c2 = (product_0 >> 32).bitwise_and_(_MASK).bitwise_xor_(c3).bitwise_xor_(k1[..., turn])
        c1, c3 = product_1.bitwise_and_(_MASK), product_0.bitwise_and_(_MASK)
    return [c0, c1, c2, c3]


def seeded_normal(seeds: Tensor, step: int | Tensor, role: int, shape: tuple[int, ...]) -> Tensor:
    """Standard normal noise, a row for each seed.

    Args:
        seeds: one seed per sample, (B,) int64, non-negative.
        step: number of the reverse step; an int, a 0-d integer tensor, or several, (S,) int64,
            on the device of ``seeds``.
        role: which noise of the method this is, one of the constants of this module.
        shape: shape of one sample's noise.

    Returns:
        Noise, (B, *shape), for several steps (S, B, *shape), float32, on the device of ``seeds``.
        Row i depends on ``seeds[i]``, its step, ``role`` and ``shape`` alone.

    Source: Philox as above, with the Box-Muller transform.
    """
    count = math.prod(shape)
    blocks = torch.arange(-(-count // 4), device=seeds.device)[None]
    zeros = torch.zeros_like(blocks)
    steps = torch.as_tensor(step, device=seeds.device)
    key = [(seeds & _MASK)[:, None], ((seeds >> 32) & _MASK)[:, None]]
    words = torch.stack(philox([blocks, zeros + steps[..., None, None], zeros + role, zeros],
                               key))
    # 24 bits fit a float32 exactly; + 0.5 keeps u above 0, where the logarithm is finite
    u = ((words >> 8).float() + 0.5) * 2**-24
    radius, angle = (-2 * u[::2].log()).sqrt(), 2 * math.pi * u[1::2]
    normals = torch.stack([radius * angle.cos(), radius * angle.sin()], dim=1)
    # the four of a block side by side
    normals = normals.flatten(0, 1).movedim(0, -1).flatten(-2)
    return normals[..., :count].reshape(*steps.shape, len(seeds), *shape)


def seeded_normals(
    seeds: Tensor, steps: Sequence[int], role: int, shape: tuple[int, ...]
) -> Iterator[Tensor]:
    """`seeded_normal` of each step in turn.

    It is drawn for several steps at once: what a small draw costs is its many calls.
    """
    at_once = max(1, _AT_ONCE // (len(seeds) * math.prod(shape)))
    numbers = torch.tensor(steps, dtype=torch.int64, device=seeds.device)
    # the numbers are on the device by now: the steps themselves copy nothing
    return (noise for several in numbers.split(at_once)
            for noise in seeded_normal(seeds, several, role, shape))
