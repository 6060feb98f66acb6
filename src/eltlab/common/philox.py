"""Philox-4x32-10, a counter-based generator of random bits (Salmon et al., "Parallel random numbers: as easy
as 1, 2, 3", SC 2011), in integer operations of torch: the same bits on every device."""

import torch
from torch import Tensor

MASK = 0xFFFFFFFF  # the low 32 bits
MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
WEYL = (0x9E3779B9, 0xBB67AE85)  # added to the key after each round
ROUNDS = 10

Words = tuple[Tensor, Tensor, Tensor, Tensor]


def philox(counter: Words, key: tuple[int, int]) -> Words:
    """Four random words of 32 bits for each counter.

    Args:
        counter: four words, int64 tensors of values below 2³² that broadcast against each other.
        key: two words; different keys give unrelated streams.

    Returns int64 tensors of values below 2³², in the shape that the counter broadcasts to.
    """
    # In place, in six tensors: on a CPU, new memory for every operation would take most of the time.
    words = torch.broadcast_tensors(*counter)
    a, b, c, d = (word.clone(memory_format=torch.contiguous_format) for word in words)
    first, second = torch.empty_like(a), torch.empty_like(a)
    k, m = key
    for _ in range(ROUNDS):
        # A product may exceed 2⁶³ and turn negative. Its bits are those of the unsigned product, and the
        # mask removes the copies of the sign that the shift brings in.
        torch.mul(a, MULTIPLIERS[0], out=first)
        torch.mul(c, MULTIPLIERS[1], out=second)
        torch.bitwise_right_shift(second, 32, out=a).bitwise_and_(MASK).bitwise_xor_(b).bitwise_xor_(k)
        torch.bitwise_right_shift(first, 32, out=c).bitwise_and_(MASK).bitwise_xor_(d).bitwise_xor_(m)
        b, second = second.bitwise_and_(MASK), b  # the low words; the old ones are overwritten next
        d, first = first.bitwise_and_(MASK), d
        k, m = (k + WEYL[0]) & MASK, (m + WEYL[1]) & MASK
    return a, b, c, d
