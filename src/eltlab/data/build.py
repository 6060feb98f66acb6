"""Builds the training data of a configuration: pixels in memory or streamed, or an encoded set."""

from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor

from eltlab.common import ranks
from eltlab.common.seeds import WHOLE_BATCH, BatchSlice
from eltlab.config.schema import Config
from eltlab.data.batches import Batches, StreamedBatches
from eltlab.data.encoded.encoded_split import EncodedBatches, EncodedSplit, tokenizer_of_set
from eltlab.data.encoded.manifest import Manifest, opened
from eltlab.data.encoded.shards import check_set
from eltlab.data.images.image_files import ImageFiles, Images
from eltlab.data.sources import Splits, load_splits, source_splits
from eltlab.data.tokenizers.patch_codebook import PatchCodebook, encode_set, fit_codebook
from eltlab.data.tokenizers.per_frame import PerFrame
from eltlab.data.tokenizers.tokenizer_files import Tokenizer
from eltlab.model.build import patches_of


@dataclass(frozen=True)
class Data:
    """The splits of a run, and the tokenizer that masked models see them through."""

    train: Images
    test: Images
    tokenizer: PatchCodebook | None

    def images(self, config: Config) -> Splits:
        """(train, test) that samples are held against."""
        return self.train, self.test

    @property
    def hash(self) -> str:
        """Of the training split: a run goes on with the images that it began with."""
        return self.train.origin

    def batches(
        self,
        config: Config,
        start: int,
        device: torch.device,
        batch_slice: BatchSlice = WHOLE_BATCH,
    ) -> Batches | StreamedBatches:
        """The batches of steps start…config.steps − 1, or a share of each. Token ids are encoded here,
        once."""
        train, flip = self.train, config.data.flip
        steps = (config.batch_size, config.seed, start, config.steps, flip)
        if self.tokenizer is not None:
            ids, mirrored = encode_set(self.tokenizer, train, flip)
            if mirrored is not None:
                mirrored = mirrored.to(device)
            return Batches(ids.to(device), train.labels.to(device), *steps, mirrored, batch_slice)
        if isinstance(train, ImageFiles):
            return StreamedBatches(train, *steps, device, batch_slice)
        return Batches(
            train.images.to(device), train.labels.to(device), *steps, batch_slice=batch_slice
        )

    def held_out(self, most: int) -> tuple[Tensor, Tensor]:
        """Ids or uint8 images, and labels, of a seeded subset of the test split, for validation."""
        test = self.test.subset(min(most, len(self.test)))
        if self.tokenizer is not None:
            return self.tokenizer.encode(test.images), test.labels
        return test.images, test.labels

    @property
    def codebook(self) -> Tensor | None:
        return self.tokenizer.codes if self.tokenizer is not None else None

    def with_codebook(self, codes: Tensor | None) -> "Data":
        """The same splits seen through these codes: those that a run was trained on."""
        if self.tokenizer is None or codes is None:
            return self
        return replace(self, tokenizer=PatchCodebook(codes, self.tokenizer.patches))


@dataclass(frozen=True)
class EncodedData:
    """The splits of a run on latents or tokens, and the tokenizer that made them."""

    manifest: Manifest
    train: EncodedSplit
    test: EncodedSplit
    tokenizer: Tokenizer | PerFrame
    codebook: ClassVar[None] = None  # the tokenizer stays with the set, and out of checkpoints

    def images(self, config: Config) -> Splits:
        """(train, test) that samples are held against: what the set was encoded from."""
        return source_splits(config)

    @property
    def hash(self) -> str:
        return self.manifest.id

    def batches(
        self,
        config: Config,
        start: int,
        device: torch.device,
        batch_slice: BatchSlice = WHOLE_BATCH,
    ) -> EncodedBatches:
        """The batches of steps start…config.steps − 1, or a share of each."""
        data = config.data
        whole = data.in_memory
        if whole is None:
            whole = self.train.fits(device, data.flip, ranks.local_world_size())
        steps = (config.batch_size, config.seed, start, config.steps, data.flip)
        return EncodedBatches(self.train, *steps, device, whole, data.workers, batch_slice)

    def held_out(self, most: int) -> tuple[Tensor, Tensor]:
        """Inputs and labels of a seeded subset of the test split, for validation."""
        return self.test.subset(most)

    def with_codebook(self, codes: Tensor | None) -> "EncodedData":
        return self


def build_splits(config: Config) -> Splits:
    """(train, test) images that samples are held against. Raises UserError where they are not there,
    are others, or broken."""
    return load_splits(config.data) if config.data.kind == "pixels" else source_splits(config)


def build_data(config: Config) -> Data | EncodedData:
    """What a configuration trains on. Raises UserError where it is not there, is another, or broken."""
    if config.data.kind != "pixels":
        manifest = opened(config.data)
        check_set(manifest)
        train, test = EncodedSplit(manifest, "train"), EncodedSplit(manifest, "test")
        return EncodedData(manifest, train, test, tokenizer_of_set(manifest))
    return build_pixels(config)


def build_pixels(config: Config) -> Data:
    train, test = load_splits(config.data)
    tokenizer = None
    if config.objective.INPUTS == "tokens":
        tokenizer = fit_codebook(train, patches_of(config.data), config.data.codebook)
    return Data(train, test, tokenizer)
