"""Bytes of the tensors that are alive, followed op by op: what CUDA's allocator reports, for the CPU.

For tests and benchmarks: a dispatch mode makes every op some microseconds slower. What a kernel
allocates for itself and frees before it returns is not seen.
"""

import weakref
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class LiveBytes(TorchDispatchMode):
    """A context that follows every storage that ops create in it, in the backward too.

    current: bytes of those that are alive now; peak: the most since the start or `restart`. A view
    or an in-place result is no new storage, and what existed before is not counted, nor its end.
    """

    def __init__(self) -> None:
        super().__init__()
        self.current = self.peak = 0
        self.known: set[int] = set()  # addresses of storages that are counted and alive

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        given = {storage._cdata for storage in storages((args, kwargs))}
        out = func(*args, **kwargs)
        for storage in storages(out):
            # An op that returns a storage it was given has written in place or made a view.
            if storage._cdata not in given | self.known:
                self.count(storage)
        self.peak = max(self.peak, self.current)
        return out

    def count(self, storage: torch.UntypedStorage) -> None:
        """Adds a storage, and takes it away again when its last tensor goes."""
        address, size = storage._cdata, storage.nbytes()
        self.known.add(address)
        self.current += size
        weakref.finalize(storage, self.forget, address, size).atexit = False

    def forget(self, address: int, size: int) -> None:
        self.known.discard(address)
        self.current -= size

    def restart(self) -> None:
        """Begins a new peak from what is alive now."""
        self.peak = self.current


def storages(values: Any) -> Iterator[torch.UntypedStorage]:
    """The storage of each tensor among nested values."""
    return (leaf.untyped_storage() for leaf in tree_leaves(values) if isinstance(leaf, Tensor))
