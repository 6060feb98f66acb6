"""Counts the bytes of live tensors on the CPU, as the allocator does on CUDA.

For tests and benchmarks: every op takes some microseconds longer. Memory that a kernel allocates for itself
and frees before it returns is not counted.
"""

import weakref
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class LiveMemory(TorchDispatchMode):
    """A context that counts the storages that ops create inside it, also in the backward pass.

    current: bytes of the storages alive now; peak: the maximum since the start or `reset_peak`. Storages
    that existed before are not counted, and neither is their release.
    """

    def __init__(self) -> None:
        super().__init__()
        self.current = self.peak = 0
        self.known: set[int] = set()  # addresses of the storages counted in `current`

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        given = {storage._cdata for storage in storages((args, kwargs))}
        out = func(*args, **kwargs)
        for storage in storages(out):
            address, size = storage._cdata, storage.nbytes()
            # An op that returns a storage it was given has written in place or made a view.
            if address not in given | self.known:
                self.known.add(address)
                self.current += size
                weakref.finalize(storage, self.remove, address, size).atexit = False
        self.peak = max(self.peak, self.current)
        return out

    def remove(self, address: int, size: int) -> None:
        self.known.discard(address)
        self.current -= size

    def reset_peak(self) -> None:
        self.peak = self.current


def storages(values: Any) -> Iterator[torch.UntypedStorage]:
    """The storage of each tensor among nested values."""
    return (leaf.untyped_storage() for leaf in tree_leaves(values) if isinstance(leaf, Tensor))
