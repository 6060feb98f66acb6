"""What samples are compared with in the features of one network: a split, its statistics, and a subset."""

from functools import cached_property

import numpy as np
from torch import Tensor

from eltlab.common.disk_cache import digest
from eltlab.config.schema import DEFAULT_REFERENCE, MetricsConfig
from eltlab.data.images.image_files import Images
from eltlab.evaluation.distances import Statistics, frechet, statistics
from eltlab.evaluation.features import Extractor, Subset, load_or_make
from eltlab.evaluation.ideal_distance import PROTOCOL, CovarianceTerm, Ideal, extrapolate, ideal_samples
from eltlab.evaluation.memorised import closeness_limit, memorised
from eltlab.evaluation.statistics_file import StatisticsFile, read_statistics_file
from eltlab.evaluation.streamed_statistics import streamed_statistics


def subset_size(metrics: MetricsConfig, images: Images) -> int:
    """How many images of the reference split are compared one by one."""
    return min(len(images), DEFAULT_REFERENCE) if metrics.reference is None else metrics.reference


def identify(split: Images) -> str:
    return f"{split.name}-{len(split)}-{split.origin}"


class Reference:
    """A network's view of the reference split, and of the training and test images for `memorised`.

    train, test: the splits. metrics: split, statistics and reference choose what is compared. neighbours: how
    many training images samples are searched for near copies of. Everything is computed when it is first
    needed and then read from the cache.
    """

    def __init__(
        self, train: Images, test: Images, metrics: MetricsConfig, extractor: Extractor, neighbours: int
    ) -> None:
        self.extractor, self.choice = extractor, metrics.statistics
        self.split = train if metrics.split == "train" else test
        self.subset = Subset(self.split, subset_size(metrics, self.split), extractor)
        self.train = Subset(train, min(neighbours, len(train)), extractor)
        self.test = Subset(test, min(neighbours, len(test)), extractor)

    @cached_property
    def name(self) -> str:
        """Identifies the reference, and the images for `memorised`, in a protocol. The origin of images in
        files is a hash of the files, in memory or not: equal runs get equal ids."""
        name = identify(self.split)
        if self.choice == "reference":
            name += f", {self.subset.count} of them"
        else:
            name += "" if self.choice is None else f", statistics {self.file.hash}"
            name += "" if self.subset.count == len(self.split) else f", pairs with {self.subset.count}"
        near, new = (f"{each.count} of {identify(each.images)}" for each in (self.train, self.test))
        return f"{name}; memorised: {near}, limit from {new}"

    @cached_property
    def features(self) -> Tensor:
        """float32 [reference, F], of the subset"""
        return self.subset.features()

    @cached_property
    def file(self) -> StatisticsFile:
        assert self.choice is not None
        return read_statistics_file(self.choice)

    @cached_property
    def statistics(self) -> Statistics:
        if self.streams:
            return streamed_statistics(self.split, self.extractor)
        if self.choice in (None, "reference"):
            return statistics(self.features)
        self.file.check_size(self.choice, self.features.shape[1])
        return self.file.measure(self.extractor)

    @property
    def streams(self) -> bool:
        """Whether the statistics need images that are not in the subset."""
        return self.choice is None and self.subset.count < len(self.split)

    @property
    def examples(self) -> int:
        """How many images or clips the network sees, once."""
        subsets = {(id(each.images), each.count) for each in (self.subset, self.train, self.test)}
        return sum(count for _, count in subsets) + self.streams * len(self.split)

    def distances(self, features: Tensor, labels: Tensor, name: str) -> dict[str, float]:
        """Columns for the features of samples [N, F]: NAME, the Fréchet distance; NAME_inf, with infinitely
        many samples; fd_ideal, that of ideal samples of the same number."""
        distance = frechet(statistics(features), self.statistics)
        ideal = self.ideal(labels)
        beyond = extrapolate(distance, features, labels, self.covariance_term, ideal)
        return {name: distance, f"{name}_inf": beyond, "fd_ideal": ideal.distance}

    @cached_property
    def covariance_term(self) -> CovarianceTerm:
        return CovarianceTerm(self.statistics)

    def ideal(self, labels: Tensor) -> Ideal:
        """What ideal samples with these labels get. Cached."""
        of_file = self.choice not in (None, "reference")
        source = self.file.hash if of_file else "split" if self.streams else "subset"
        classes = self.subset.labels

        def compute() -> np.ndarray:
            moments = None if source == "subset" else self.statistics
            return np.array(ideal_samples(self.features, classes, labels, moments))

        # The hash of images in files does not cover their labels.
        counts = (str(labels.bincount().tolist()), digest(classes.numpy()))
        key = (PROTOCOL, self.extractor.name, self.split.hash, str(self.subset.count), source, *counts)
        return Ideal(*load_or_make(compute, *key).tolist())

    def memorised(self, features: Tensor) -> float:
        """The fraction of samples [N, F] closer to a training image than 5 % of the test images are."""
        train, limit = self._neighbours
        return memorised(features, train, limit)

    @cached_property
    def _neighbours(self) -> tuple[Tensor, float]:
        """The training features, and the distance that is close."""
        train = self.train.features()

        def compute() -> np.ndarray:
            return np.array(closeness_limit(self.test.features(), train))

        sizes = f"{self.train.count} {self.test.count}"
        key = ("closeness", self.extractor.name, self.train.images.hash, self.test.images.hash, sizes)
        return train, float(load_or_make(compute, *key))
