"""Distances between two sets of features, each by torch-fidelity's own function.

Features are float32 [N, F] on the CPU. What torch-fidelity leaves to the caller, or could change with
its version, is in PROTOCOL, which is part of the extractor's name where these distances are taken.
"""

from typing import Any

from torch import Tensor
from torch_fidelity import __version__
from torch_fidelity.metric_fid import fid_features_to_statistics, fid_statistics_to_metric
from torch_fidelity.metric_isc import isc_features_to_metric
from torch_fidelity.metric_kid import kid_features_to_metric
from torch_fidelity.metric_prc import prc_features_to_metric

KID_SUBSETS, KID_SIZE = 100, 1000  # torch-fidelity's; fewer images than KID_SIZE: all of them
NEIGHBOUR = 3  # k of improved precision and recall (Kynkäänniemi et al. 2019)
SPLITS = 10  # of the inception score
SEED = 2020  # torch-fidelity's
PROTOCOL = (
    f"kid {KID_SUBSETS}x{KID_SIZE} seed {SEED}, precision and recall k {NEIGHBOUR}, "
    f"isc {SPLITS} splits, torch-fidelity {__version__}"
)

Statistics = dict[str, Any]


def statistics(features: Tensor) -> Statistics:
    """Mean [F] and covariance [F, F]."""
    return fid_features_to_statistics(features)


def frechet(one: Statistics, other: Statistics) -> float:
    """‖μ₁ − μ₂‖² + tr(Σ₁ + Σ₂ − 2·(Σ₁Σ₂)^½)."""
    values = fid_statistics_to_metric(one, other, verbose=False)
    return float(values["frechet_inception_distance"])


def kernel(features: Tensor, reference: Tensor) -> float:
    """KID: the squared MMD under a cubic kernel, unbiased, its mean over subsets."""
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
    """Shares of samples within the reference's k-nearest-neighbour balls, and the other way round.

    In the features that FID takes, as in ADM (Dhariwal & Nichol 2021); not in VGG-16's, which
    torch-fidelity takes where it is not told.
    """
    values = prc_features_to_metric(
        features,
        reference,
        prc_neighborhood=NEIGHBOUR,
        save_cpu_ram=True,  # in parts: the whole matrix of distances would not fit large references
        verbose=False,
    )
    return float(values["precision"]), float(values["recall"])


def inception_score(logits: Tensor) -> float:
    """exp(E KL(p(y|x) ‖ p(y))) of unbiased logits [N, classes], its mean over splits."""
    values = isc_features_to_metric(logits, splits=SPLITS, shuffle=True, rng_seed=SEED)
    return float(values["inception_score_mean"])
