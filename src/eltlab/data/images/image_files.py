"""Images in files: decoded once into a cache and kept in memory, or streamed during training."""

import math
import zipfile
from collections.abc import Iterable, Iterator
from copy import copy
from functools import cached_property
from pathlib import Path
from typing import BinaryIO

import numpy as np
import PIL
import torch
from torch import Tensor
from torch.utils.data import Dataset

from eltlab.common.disk_cache import cache_dir, cached_array, digest
from eltlab.common.errors import UserError
from eltlab.common.machine_facts import physical_memory
from eltlab.common.progress import Bar
from eltlab.common.text import example_unit, printable_name
from eltlab.config.schema import DataConfig
from eltlab.data.content_hashes import content_hashes, part_contents
from eltlab.data.images.image_decoding import TRANSFORM, decode_image
from eltlab.data.images.image_set import ImageSet, choose_subset
from eltlab.data.readahead import read_ahead
from eltlab.data.sets import parquet
from eltlab.data.sets.image_listing import list_images
from eltlab.data.sets.listing import ListedSplit

CONTENT = "content-"  # starts the origin of files; before, it was a hash of their names and sizes
MEMORY_SHARE = 4  # by default, a set is loaded if it takes at most a quarter of the memory
CHUNK, CHUNK_BYTES = 256, 2**26  # images to decode into the cache, or to classify, at a time


def chunk_size(shape: tuple[int, ...]) -> int:
    """How many images or clips of this shape to process at a time, at least one."""
    return max(1, min(CHUNK, CHUNK_BYTES // math.prod(shape)))


class ImageFiles(Dataset):
    """Labelled images in a folder, a zip or Parquet files, each read and decoded when it is requested.

    DataLoader copies it to worker processes. Its items are batches: the index is a list of indices.
    root: the folder or file that the names of the split are relative to.
    """

    transform = TRANSFORM
    versions: tuple[str, ...] = (PIL.__version__,)  # another version may decode to different pixels

    def __init__(self, name: str, root: Path, split: ListedSplit, data: DataConfig) -> None:
        self.name, self.root, self.names, self.workers = name, root, split.names, data.workers
        self.labels = torch.tensor(split.labels, dtype=torch.long)
        self.shape = data.shape
        self._in_parquet = bool(parquet.parquet_files(root))
        self._archive: zipfile.ZipFile | None = None  # opened by each process that reads from it

    def __len__(self) -> int:
        return len(self.names)

    @cached_property
    def contents(self) -> list[str]:
        """What identifies the bytes of each example. The first time, every file is read. Raises UserError."""
        if self._in_parquet:
            return part_contents(parquet.base_folder(self.root), self.names, ":")
        return content_hashes(self.root, self.names)

    @cached_property
    def origin(self) -> str:
        """Identifies what a run trains on: the bytes, labels and order of the examples, wherever they are."""
        return CONTENT + digest(self.contents, self.labels.numpy(), self.shape, self.transform)

    @property
    def hash(self) -> str:
        """Identifies the pixels without decoding them: changes if the bytes or their decoder do."""
        return digest(self.contents, self.shape, self.transform, *self.versions)

    def read_batches(self, batches: Iterable[list[int]], pin: bool = False) -> Iterator[Tensor]:
        """uint8 [B, *shape] for each list of indices, in order; pin: see `read_ahead`. Raises UserError."""
        return read_ahead(self, batches, self.workers, pin)

    def read_in_order(self, batch: int) -> Iterator[Tensor]:
        """All images, in batches of this size."""
        indices = range(len(self))
        return self.read_batches([list(indices[i : i + batch]) for i in indices[::batch]])

    def __getitem__(self, indices: list[int] | Tensor) -> Tensor:
        """uint8 [B, *shape]. Raises UserError."""
        images = np.empty((len(indices), *self.shape), dtype=np.uint8)
        self.decode_into(images, torch.as_tensor(indices).tolist())
        return torch.from_numpy(images)

    def decode_into(self, images: np.ndarray, indices: list[int]) -> None:
        """Fills images, uint8 [B, *shape], with the examples at these indices. Raises UserError."""
        channels, size, _ = self.shape
        for image, index in zip(images, indices, strict=True):
            name = self.names[index]
            image[:] = decode_image(self._read(name), size, channels, self._place(name))

    def _read(self, name: str) -> bytes:
        try:
            if self._in_parquet:
                return parquet.read_image(self.root, name)
            if not self.root.is_file():
                return (self.root / name).read_bytes()
            if self._archive is None:
                self._archive = zipfile.ZipFile(self.root)
            return self._archive.read(name)
        except Exception as error:  # zipfile and Arrow raise many kinds
            raise UserError(f"{self._place(name)}: not readable ({error})") from error

    def _place(self, name: str) -> str:
        """The path of an image as messages show it."""
        if self._in_parquet:
            return printable_name(parquet.base_folder(self.root) / name)
        return printable_name(f"{self.root}, {name}" if self.root.is_file() else self.root / name)

    def subset(self, count: int | None) -> ImageSet:
        """The same seeded subset as `ImageSet.subset`, in memory. Raises UserError."""
        if count is None or count == len(self):
            return self.load()
        part = self._at(torch.from_numpy(choose_subset(count, len(self), self.name)))
        return ImageSet(self.name, part.load().images, part.labels)

    def part(self, indices: Tensor) -> "ImageFiles":
        """The images at these indices, in this order, as a part of the same data: origin stays."""
        part = self._at(indices)
        part.__dict__["origin"] = self.origin
        return part

    def _at(self, indices: Tensor) -> "ImageFiles":
        part = copy(self)
        part.__dict__.pop("origin", None)  # that of the whole set
        chosen = indices.tolist()
        part.names, part.labels = [self.names[i] for i in chosen], self.labels[indices]
        if "contents" in part.__dict__:
            part.contents = [self.contents[i] for i in chosen]
        return part

    def load(self) -> ImageSet:
        """All images in memory: decoded once, then read from the cache until a file changes."""
        path = cache_dir() / "images" / f"{self.hash}.npy"
        images = torch.from_numpy(cached_array(path, self._write, mapped=True))
        return ImageSet(self.name, images, self.labels, self.origin)

    def _write(self, file: BinaryIO) -> None:
        """Decodes into a .npy file in order: writing to a memory map would crash if the disk is full."""
        header = {"descr": "|u1", "fortran_order": False, "shape": (len(self), *self.shape)}
        np.lib.format.write_array_header_1_0(file, header)
        for images in read_with_bar("decode", self, chunk_size(self.shape)):
            file.write(images.numpy().tobytes())


Images = ImageSet | ImageFiles


def read_with_bar(verb: str, images: Images, batch: int) -> Iterator[Tensor]:
    """All images, in batches of this size. verb: what the caller does with them, for the bar."""
    done = 0
    with Bar(f"{verb} {images.name}", len(images), unit=example_unit(images.shape)) as bar:
        for part in images.read_in_order(batch):
            yield part
            done += len(part)
            bar.update(done)


def load_images(data: DataConfig) -> tuple[Images, Images]:
    """(train, test) of data=images. Raises UserError if it has too few, or not data.classes classes."""
    listing = list_images(data.root)
    listing.check_class_count(data.classes)
    listing.check_examples()
    train = ImageFiles("images/train", listing.root, listing.train, data)
    test = ImageFiles("images/test", listing.root, listing.test, data)
    return load_or_stream(train, test, data.in_memory)


def load_or_stream(train: ImageFiles, test: ImageFiles, in_memory: bool | None) -> tuple[Images, Images]:
    """Both splits in memory, or both streamed; None: in memory if they take at most a quarter of it."""
    if in_memory is None:
        size = (len(train) + len(test)) * math.prod(train.shape)
        in_memory = size <= physical_memory() // MEMORY_SHARE
    return (train.load(), test.load()) if in_memory else (train, test)
