"""Builds what a configuration trains on: pixels, tokens of pixel patches, or an encoded set."""

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from eltlab.common.seeds import WHOLE_BATCH, BatchSlice
from eltlab.config.schema import Config
from eltlab.data.batches import FLIPPED, LABELS, BatchLoader, Rows
from eltlab.data.encoded.encoded_split import EncodedSplit, load_set_tokenizer
from eltlab.data.encoded.manifest import open_set
from eltlab.data.encoded.shard_files import check_set
from eltlab.data.image_sources import Splits, load_source_splits, load_splits
from eltlab.data.images.image_files import ImageFiles, Images
from eltlab.data.tokenizers.patch_codebook import CodebookRows, PatchCodebook, encode_set, fit_codebook
from eltlab.data.tokenizers.tokenizer import Tokenizer
from eltlab.model.patches import patches_of


@dataclass(frozen=True)
class TrainingData:
    """The splits of a run and its tokenizer, which is None if the run trains on pixels."""

    train: Images | EncodedSplit
    test: Images | EncodedSplit
    tokenizer: Tokenizer | None

    def images(self, config: Config) -> Splits:
        """(train, test) images that samples are compared with. For an encoded set, its source images."""
        if isinstance(self.train, EncodedSplit) or isinstance(self.test, EncodedSplit):
            return load_source_splits(config)
        return self.train, self.test

    def batches(
        self, config: Config, start: int, device: torch.device, batch_slice: BatchSlice = WHOLE_BATCH
    ) -> BatchLoader:
        """The batches of steps start … config.steps − 1, or a slice of each."""
        return BatchLoader(
            self._tensors(config, device),
            config.batch_size,
            config.seed,
            start,
            config.steps,
            config.data.flip,
            device,
            config.data.workers,
            batch_slice,
        )

    def _tensors(self, config: Config, device: torch.device) -> dict[str, Rows]:
        """The training split under the names that `batches.to_inputs` takes."""
        train, flip = self.train, config.data.flip
        labels: dict[str, Rows] = {LABELS: train.labels}
        if isinstance(train, EncodedSplit):
            return labels | train.rows(device, flip, config.data.in_memory)
        if isinstance(self.tokenizer, PatchCodebook):
            ids, mirrored = encode_set(self.tokenizer, train, flip)
            return labels | {"ids": ids} | ({} if mirrored is None else {"ids" + FLIPPED: mirrored})
        return labels | {"images": train if isinstance(train, ImageFiles) else train.images}

    def held_out(self, most: int) -> tuple[Tensor, Tensor]:
        """Inputs (pixels as uint8) and labels of at most this many test examples, by a fixed seed."""
        if isinstance(self.test, EncodedSplit):
            return self.test.subset(most)
        test = self.test.subset(min(most, len(self.test)))
        if isinstance(self.tokenizer, PatchCodebook):
            return self.tokenizer.encode(test.images), test.labels
        return test.images, test.labels

    def inputs(self, split: Images | EncodedSplit) -> Rows:
        """What the objective corrupts (pixels as uint8), of the examples of a split, without mirroring. It is
        read when it is indexed."""
        if isinstance(split, EncodedSplit):
            return split
        pixels: Rows = split if isinstance(split, ImageFiles) else split.images
        return CodebookRows(self.tokenizer, pixels) if isinstance(self.tokenizer, PatchCodebook) else pixels

    @property
    def codebook(self) -> Tensor | None:
        """The codes that a checkpoint keeps. The tokenizer of an encoded set stays with the set."""
        return self.tokenizer.codes if isinstance(self.tokenizer, PatchCodebook) else None

    def with_codebook(self, codes: Tensor | None) -> "TrainingData":
        """The same splits with the codes of a checkpoint. A resumed run must keep them, because k-means may
        give different codes on a different machine."""
        if codes is None or not isinstance(self.tokenizer, PatchCodebook):
            return self
        return replace(self, tokenizer=PatchCodebook(codes, self.tokenizer.patches))


def load_data(config: Config) -> TrainingData:
    """The splits alone, for a trained run, which brings its tokenizer. Raises UserError if they are missing,
    damaged or not those that the configuration names."""
    if config.data.kind == "pixels":
        return TrainingData(*load_splits(config.data), None)
    manifest = open_set(config.data)
    check_set(manifest)
    return TrainingData(EncodedSplit(manifest, "train"), EncodedSplit(manifest, "test"), None)


def build_data(config: Config) -> TrainingData:
    """What a run trains on, with its tokenizer. Raises UserError as `load_data`."""
    data = load_data(config)
    if isinstance(data.train, EncodedSplit):
        return replace(data, tokenizer=load_set_tokenizer(open_set(config.data)))
    if config.objective.INPUTS != "tokens":
        return data
    return replace(data, tokenizer=fit_codebook(data.train, patches_of(config.data), config.data.codebook))
