"""How near samples are to a reference set, through torch-fidelity; reference features are cached."""

from functools import cached_property

import torch
from torch import Tensor
from torch.utils.data import Dataset
from torch_fidelity import calculate_metrics

from eltlab.data.images import ImageSet
from eltlab.files import cache_dir, digest
from eltlab.metrics.classifier import NAME, CachedClassifier
from eltlab.seeds import generator

SPLITS = 8  # of the reference into halves


class Images(Dataset[Tensor]):
    """uint8 images [N, C, H, W] as torch-fidelity takes them."""

    def __init__(self, images: Tensor) -> None:
        self.images = images

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> Tensor:
        return self.images[index]


class ClassifierMetrics:
    """fd_classifier against a reference set and class accuracy; `extractor` and `reference` name
    what they were measured with, for the protocol."""

    def __init__(self, train: ImageSet, classes: int, reference: ImageSet) -> None:
        self.classifier = CachedClassifier(train, classes)
        self.reference_set = reference
        self.extractor = f"classifier-{self.classifier.hash}"
        self.reference = f"{reference.name}-{len(reference)}-{reference.hash}"

    def measure(self, images: Tensor, labels: Tensor) -> dict[str, float]:
        """fd_classifier and accuracy of uint8 images [N, C, H, W] drawn for labels [N]."""
        cached = f"reference-{digest(self.extractor, self.reference)}"
        with torch.inference_mode():
            right = self.classifier.model.classify(images) == labels
        return {
            "fd_classifier": self.distance(images, self.reference_set.images, cached),
            "accuracy": right.float().mean().item(),
        }

    @cached_property
    def halves(self) -> float:
        """fd_classifier between two halves of the reference, balanced over the classes as samples
        are: what two draws of real data differ by. Mean over SPLITS random splits."""
        images, labels = self.reference_set.images, self.reference_set.labels
        distances = []
        for split in range(SPLITS):
            order = torch.randperm(len(images), generator=generator(0, "halves", split))
            order = order[labels[order].argsort(stable=True)]
            distances.append(self.distance(images[order[::2]], images[order[1::2]]))
        return sum(distances) / SPLITS

    def distance(self, images: Tensor, others: Tensor, cache_name: str | None = None) -> float:
        """The Fréchet distance of two sets; with cache_name the features of `others` are kept."""
        with torch.random.fork_rng(devices=[]):  # torch-fidelity draws from the caller's generator
            values = calculate_metrics(
                input1=Images(images),
                input2=Images(others),
                input2_cache_name=cache_name,
                cache_root=str(cache_dir() / "features"),
                feature_extractor=NAME,
                feature_extractor_weights_path=str(self.classifier.path),
                fid=True,
                cuda=False,
                batch_size=256,
                save_cpu_ram=True,  # no worker processes: the images lie in memory
                verbose=False,
            )
        return float(values["frechet_inception_distance"])
