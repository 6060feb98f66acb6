"""FVD separates real clips from noised ones, with the real I3D on real sprites. Twenty minutes on a core."""

import os
from pathlib import Path

import pytest
import torch

from eltlab.data.clips.sprites import load_sprites
from eltlab.evaluation.distances import frechet, statistics
from eltlab.evaluation.features import Extractor
from eltlab.evaluation.i3d import find_i3d_weights, load_i3d

CLIPS, LEVELS = 512, (8, 16, 32)  # standard deviations of the noise, in grey levels of 255


def ready() -> bool:
    sheets = Path(os.environ.get("ELTLAB_DATA", ""), "sprites_sheets.tar")
    return "ELTLAB_DATA" in os.environ and sheets.is_file()


@pytest.mark.slow
@pytest.mark.skipif(not ready(), reason="needs the sprite sheets in ELTLAB_DATA")
def test_fvd_is_small_between_real_clips_and_grows_with_noise():
    find_i3d_weights(None)
    train, _ = load_sprites(str(Path(os.environ["ELTLAB_DATA"], "sprites_sheets.tar")))
    real = train.subset(CLIPS)
    network = load_i3d(None)
    extractor = Extractor(network.name, network, torch.device("cpu"), 1)
    features = extractor.features(real.images)
    order = torch.randperm(CLIPS, generator=torch.Generator().manual_seed(0))
    one, other = order.chunk(2)
    against = statistics(features[one])
    halves = frechet(against, statistics(features[other]))
    noise = torch.randn(len(other), *real.shape, generator=torch.Generator().manual_seed(1))
    noised = []
    for level in LEVELS:
        clips = (real.images[other] + level * noise).round().clamp(0, 255).to(torch.uint8)
        noised.append(frechet(against, statistics(extractor.features(clips))))
    print(f"FVD of halves {halves:.2f}, of noise {dict(zip(LEVELS, noised, strict=True))}")
    assert noised == sorted(noised)
    assert 0 < halves <= noised[0] / 5
