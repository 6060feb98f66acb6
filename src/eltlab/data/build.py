"""Builds what a configuration trains on: pixels, tokens of pixel patches, or an encoded set."""

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from eltlab.common.errors import UserError
from eltlab.common.seeds import WHOLE_BATCH, BatchSlice
from eltlab.config.schema import Config, DataConfig
from eltlab.data.batches import FLIPPED, LABELS, BatchLoader, Rows
from eltlab.data.encoded.encoded_split import EncodedSplit, load_set_tokenizer
from eltlab.data.encoded.manifest import open_set
from eltlab.data.encoded.shard_files import check_set
from eltlab.data.image_sources import Splits, load_source_splits, load_splits
from eltlab.data.images.image_files import ImageFiles, Images
from eltlab.data.sets.listing import HOLD_OUT
from eltlab.data.tokenizers.patch_codebook import CodebookRows, PatchCodebook, encode_set, fit_codebook
from eltlab.data.tokenizers.tokenizer import Tokenizer
from eltlab.model.patches import patches_of

Split = Images | EncodedSplit


@dataclass(frozen=True)
class TrainingData:
    """The splits of a run and its tokenizer, which is None if the run trains on pixels.

    With data.tuning both are parts of the training split: see `split_for_tuning`.
    """

    train: Split
    test: Split
    tokenizer: Tokenizer | None

    def images(self, config: Config) -> Splits:
        """(train, test) images that samples are compared with. For an encoded set, its source images."""
        if isinstance(self.train, EncodedSplit) or isinstance(self.test, EncodedSplit):
            return load_source_splits(config)
        return load_splits(config.data) if config.data.tuning else (self.train, self.test)

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
        """Inputs (pixels as uint8) and labels of at most this many test examples, by a fixed seed. With
        data.tuning they are from the tenth that is held out."""
        if isinstance(self.test, EncodedSplit):
            return self.test.subset(most)
        test = self.test.subset(min(most, len(self.test)))
        if isinstance(self.tokenizer, PatchCodebook):
            return self.tokenizer.encode(test.images), test.labels
        return test.images, test.labels

    def inputs(self, split: Split) -> Rows:
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
        data = TrainingData(*load_splits(config.data), None)
    else:
        manifest = open_set(config.data)
        check_set(manifest)
        data = TrainingData(EncodedSplit(manifest, "train"), EncodedSplit(manifest, "test"), None)
    if config.data.tuning:
        train, test = split_for_tuning(data.train, config.data)
        data = replace(data, train=train, test=test)
    return data


def build_data(config: Config) -> TrainingData:
    """What a run trains on, with its tokenizer. Raises UserError as `load_data`."""
    data = load_data(config)
    if isinstance(data.train, EncodedSplit):
        return replace(data, tokenizer=load_set_tokenizer(open_set(config.data)))
    if config.objective.INPUTS != "tokens":
        return data
    return replace(data, tokenizer=fit_codebook(data.train, patches_of(config.data), config.data.codebook))


def split_for_tuning(train: Split, data: DataConfig) -> tuple[Split, Split]:
    """(nine tenths, one tenth) of a training split: a run with data.tuning trains on the first and measures
    its losses on the second. Raises UserError if no class has ten examples.

    The tenth is every tenth image of each class, whatever the seed; of clips the last tenth of each class,
    because neighbours may be windows of one video.
    """
    held_out = torch.zeros(len(train), dtype=torch.bool)
    for label in range(data.classes):
        of_class = (train.labels == label).nonzero().squeeze(1)
        tenth = len(of_class) // HOLD_OUT
        last = of_class[len(of_class) - tenth :]
        held_out[last if data.frames > 1 else of_class[HOLD_OUT - 1 :: HOLD_OUT]] = True
    if not held_out.any():
        raise UserError(
            f"data.tuning=true holds every tenth example of a class back, and no class of {train.name} has "
            f"{HOLD_OUT}; add more, or remove the key"
        )
    return train.part((~held_out).nonzero().squeeze(1)), train.part(held_out.nonzero().squeeze(1))
