"""Philox-4x32-10 gives the words that its authors published."""

import pytest
import torch

from eltlab.common.philox import MASK, philox

# kat_vectors of Random123 1.14: counter, key and words.
PI = (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344, 0xA4093822, 0x299F31D0)
KNOWN = {
    (0,) * 6: (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8),
    (MASK,) * 6: (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD),
    PI: (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
}


@pytest.mark.parametrize("given", KNOWN)
def test_words_are_those_of_the_known_answer_vectors(given):
    *counter, low, high = given
    words = philox(tuple(torch.tensor([word]) for word in counter), (low, high))
    assert tuple(int(word) for word in words) == KNOWN[given]


def test_words_of_a_broadcast_counter_are_those_of_each_counter():
    a, b, c, d = torch.arange(5), torch.tensor([[7], [8]]), torch.tensor([[MASK], [1]]), torch.tensor(3)
    together = philox((a, b, c, d), (11, 12))
    for row in range(2):
        for column in range(5):
            alone = philox((a[column], b[row, 0], c[row, 0], d), (11, 12))
            assert [int(word[row, column]) for word in together] == [int(word) for word in alone]
