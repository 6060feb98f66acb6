"""Distances between two sets of features, float32 [N, F] on the CPU, by torch-fidelity's functions."""

from typing import Any

from torch import Tensor
from torch_fidelity import __version__
from torch_fidelity.metric_fid import fid_features_to_statistics, fid_statistics_to_metric
from torch_fidelity.metric_isc import isc_features_to_metric
from torch_fidelity.metric_kid import kid_features_to_metric
from torch_fidelity.metric_prc import prc_features_to_metric

KID_SUBSETS, KID_SIZE = (100, 1000)  # as in torch-fidelity; subsets of a smaller set are the whole set
NEIGHBOUR = 3  # k of improved precision and recall (Kynkäänniemi et al. 2019)
SPLITS = 10  # of the inception score
SEED = 2020  # as in torch-fidelity
# Part of the extractor's name in a protocol.
PROTOCOL = (
    f"kid {KID_SUBSETS}x{KID_SIZE} seed {SEED}, precision and recall k {NEIGHBOUR}, "
    f"isc {SPLITS} splits, torch-fidelity {__version__}"
)

Statistics = dict[str, Any]


def statistics(features: Tensor) -> Statistics:
    """mu [F] and sigma [F, F], float64."""
    return fid_features_to_statistics(features.double())  # NumPy sums float32 in float32


def frechet(first: Statistics, second: Statistics) -> float:
    """‖μ₁ − μ₂‖² + tr(Σ₁ + Σ₂ − 2·(Σ₁Σ₂)^½)."""
    values = fid_statistics_to_metric(first, second, verbose=False)
    return float(values["frechet_inception_distance"])


def kernel(features: Tensor, reference: Tensor) -> float:
    """KID (Bińkowski et al. 2018): the unbiased squared MMD with a cubic kernel, its mean over subsets."""
    values = kid_features_to_metric(
        features,
        reference,
        kid_subsets=KID_SUBSETS,
        kid_subset_size=min(KID_SIZE, len(features), len(reference)),
        rng_seed=SEED,
        verbose=False,
    )
    return float(values["kernel_inception_distance_mean"])


def precision_recall(features: Tensor, reference: Tensor) -> tuple[float, float]:
    """The share of samples in the k-nearest-neighbour balls of the reference, and the reverse.
    In FID's features as in ADM (Dhariwal & Nichol 2021); torch-fidelity's default is those of VGG-16."""
    values = prc_features_to_metric(
        features,
        reference,
        prc_neighborhood=NEIGHBOUR,
        save_cpu_ram=True,  # the distance matrix of a large reference does not fit into memory
        verbose=False,
    )
    return float(values["precision"]), float(values["recall"])


def inception_score(logits: Tensor) -> float:
    """exp(E KL(p(y|x) ‖ p(y))) from logits without bias [N, classes], its mean over splits."""
    values = isc_features_to_metric(logits, splits=SPLITS, shuffle=True, rng_seed=SEED)
    return float(values["inception_score_mean"])
