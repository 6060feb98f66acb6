"""Images that lie in files: decoded once into memory through a cache on disk, or while they train."""

import math
import zipfile
from collections import Counter
from collections.abc import Iterable, Iterator
from copy import copy
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import PIL
import torch
from torch import Tensor
from torch.utils.data import Dataset

from eltlab.common.cache import cache_dir, make_once
from eltlab.common.errors import UserError
from eltlab.common.hashing import digest
from eltlab.common.machine import physical_memory
from eltlab.common.progress import Bar
from eltlab.common.text import example_unit, printable_name
from eltlab.data.images.decode import TRANSFORM, decode
from eltlab.data.images.image_set import ImageSet, choose
from eltlab.data.readahead import read_ahead
from eltlab.data.sets import parquet
from eltlab.data.sets.folders import Listing, Split, is_packed, list_images, stamps

MEMORY_SHARE = 4  # a set may take a quarter of the memory that it lies in
PART, PART_BYTES = 256, 2**26  # images that are decoded into the cache, or classified, at a time


def part_of(shape: tuple[int, ...]) -> int:
    """How many images or clips of a shape that is: of large ones fewer, at least one."""
    return max(1, min(PART, PART_BYTES // math.prod(shape)))


class ImageFiles:
    """Labelled images in a folder or a zip, each read and decoded when it is asked for.

    Args:
        root: the folder or the zip; names are paths below it, in the order of the set.
        size, channels: of the decoded images.
        workers: processes that decode; 0: this one.
    """

    def __init__(
        self, name: str, root: Path, split: Split, size: int, channels: int, workers: int
    ) -> None:
        self.name, self.root, self.names, self.workers = name, root, split.names, workers
        self.labels = torch.tensor(split.labels, dtype=torch.long)
        self.shape: tuple[int, ...] = (channels, size, size)
        self.transform = TRANSFORM
        # Another Pillow may decode to other pixels.
        self.versions: tuple[str, ...] = (PIL.__version__,)

    def __len__(self) -> int:
        return len(self.names)

    @cached_property
    def stamps(self) -> list[tuple[int, int]]:
        return stamps(self.root, self.names)

    @cached_property
    def hash(self) -> str:
        """Of names, labels, sizes (in a zip CRCs too, of Parquet files those of their footers) and the
        transform; no image is read."""
        packed = is_packed(self.root)
        known = [stamp if packed else stamp[:1] for stamp in self.stamps]
        return digest(self.names, self.labels.numpy(), known, self.shape, self.transform)

    @property
    def origin(self) -> str:
        return self.hash

    @property
    def content(self) -> str:
        """Of the very pixels, without decoding: another where a file was written to, or its decoder is
        another."""
        return digest(self.names, self.stamps, self.shape, self.transform, *self.versions)

    @property
    def nbytes(self) -> int:
        """What the decoded images take."""
        return len(self) * int(np.prod(self.shape))

    def decoded(self, batches: Iterable[list[int]], pin: bool = False) -> Iterator[Tensor]:
        """uint8 [B, *shape] for each list of indices, in their order. Raises UserError.

        pin: into page-locked memory, from which a copy to the device need not be waited for.
        """
        yield from read_ahead(self.decoder(), batches, self.workers, pin)

    def decoder(self) -> "Decoder":
        """What decodes them, made to travel to other processes."""
        return _ImageDecoder(self.shape, self.root, self.names)

    def parts(self, size: int) -> Iterator[Tensor]:
        """The images in order, this many at a time."""
        indices = range(len(self))
        yield from self.decoded([list(indices[i : i + size]) for i in indices[::size]])

    def subset(self, count: int | None) -> ImageSet:
        """A seeded subset of count images in memory, the one of `ImageSet.subset`. Raises UserError."""
        if count is None or count == len(self):
            return self.load()
        chosen = choose(count, len(self), self.name).tolist()
        part = copy(self)
        for known in ("stamps", "hash"):  # of the whole
            part.__dict__.pop(known, None)
        part.names, part.labels = [self.names[i] for i in chosen], self.labels[chosen]
        return ImageSet(self.name, part.load().images, part.labels)

    def load(self) -> ImageSet:
        """All images in memory: decoded once, then read from the cache until a file changes."""
        path = cache_dir() / "images" / f"{self.content}.npy"
        make_once(path, self._write)
        # Mapped: the processes of a node share it.
        images = torch.from_numpy(np.load(path, mmap_mode="c", allow_pickle=False))
        return ImageSet(self.name, images, self.labels, self.origin)

    def _write(self, path: Path) -> None:
        """Decodes into one .npy file, written front to back: a full disk is an error, not a crash."""
        header = {"descr": "|u1", "fortran_order": False, "shape": (len(self), *self.shape)}
        done = 0
        with (
            path.open("wb") as file,
            Bar(f"decode {self.name}", len(self), unit=example_unit(self.shape)) as bar,
        ):
            np.lib.format.write_array_header_1_0(file, header)
            for part in self.parts(part_of(self.shape)):
                file.write(part.numpy().tobytes())
                done += len(part)
                bar.update(done)


@dataclass
class Decoder(Dataset):
    """What the worker processes get; item: indices, a list or int64 [B]. Raises UserError."""

    shape: tuple[int, ...]

    def __getitem__(self, indices: list[int] | Tensor) -> Tensor:
        images = np.empty((len(indices), *self.shape), dtype=np.uint8)
        self.fill(images, torch.as_tensor(indices).tolist())
        return torch.from_numpy(images)

    def fill(self, images: np.ndarray, indices: list[int]) -> None:
        """Decodes the examples of these indices into images. Raises UserError."""
        raise NotImplementedError


@dataclass
class _ImageDecoder(Decoder):
    root: Path
    names: list[str]

    def __post_init__(self) -> None:
        self.archive: zipfile.ZipFile | None = None  # opened by the process that reads it
        self.parquet = parquet.is_parquet(self.root)

    def fill(self, images: np.ndarray, indices: list[int]) -> None:
        channels, size, _ = self.shape
        for image, index in zip(images, indices, strict=True):
            name = self.names[index]
            image[:] = decode(self.read(name), size, channels, self.place(name))

    def place(self, name: str) -> str:
        place = f"{self.root}, {name}" if self.root.is_file() else str(self.root / name)
        if self.parquet:
            place = str(parquet.base(self.root) / name)
        return printable_name(place)

    def read(self, name: str) -> bytes:
        try:
            if self.parquet:
                return parquet.read(self.root, name)
            if not self.root.is_file():
                return (self.root / name).read_bytes()
            if self.archive is None:
                self.archive = zipfile.ZipFile(self.root)
            return self.archive.read(name)
        except (
            Exception
        ) as error:  # zipfile and Arrow too: encrypted, damaged, of an unknown compression
            raise UserError(f"{self.place(name)}: not readable ({error})") from error


Images = ImageSet | ImageFiles


def load_images(
    root: str | None,
    size: int,
    channels: int,
    classes: int,
    workers: int,
    in_memory: bool | None,
) -> tuple[Images, Images]:
    """(train, test) of data=images; in_memory None: where they take a quarter of memory at most.

    Raises UserError where the folder has not this many classes, or too few images.
    """
    listing = list_images(root)
    check_classes(listing, classes)
    check_examples(listing)
    train = ImageFiles("images/train", listing.root, listing.train, size, channels, workers)
    test = ImageFiles("images/test", listing.root, listing.test, size, channels, workers)
    return held(train, test, in_memory)


def held(train: ImageFiles, test: ImageFiles, in_memory: bool | None) -> tuple[Images, Images]:
    """Both splits, in memory or as they are; None: in memory where that takes a quarter of it at most."""
    if in_memory is None:
        in_memory = train.nbytes + test.nbytes <= physical_memory() // MEMORY_SHARE
    return (train.load(), test.load()) if in_memory else (train, test)


def check_classes(listing: Listing, classes: int) -> None:
    """Raises UserError where a configuration has another number of them."""
    if len(listing.classes) != classes:
        raise UserError(
            f"data.classes={classes}: {listing.root} has {len(listing.classes)} classes; give another "
            f"data.root, or train with data.classes={len(listing.classes)}"
        )


def check_examples(listing: Listing, what: str = "images", held_out: str = "every tenth") -> None:
    """Raises UserError where there are too few to train on, or none to test on."""
    counts = Counter(listing.train.labels)
    for label, name in enumerate(listing.classes):
        if counts[label] < 2:
            raise UserError(
                f"data.root={listing.root}: class {name} has {counts[label]} training {what}; give at "
                "least two of each class"
            )
    if not listing.test.names:
        raise UserError(
            f"data.root={listing.root}: no test {what}, as {held_out} of a class is held out and none "
            "has ten; give more, or put some into test/CLASS/ and the others into train/CLASS/"
        )
