"""Randomness is a function of (seed, purpose, step or sample index), and disturbs nothing else."""

import pytest
import torch
from support.tiny_run import tiny

from eltlab.common.seeds import BatchNoise, BatchSlice, SampleNoise, fold, generator
from eltlab.data.batches import batch_indices
from eltlab.data.tokenizers.patch_codebook import PatchCodebook
from eltlab.generation.anytime_sampler import AnytimeSampler
from eltlab.model.backbone import build_backbone, initialise_backbone
from eltlab.model.patches import Patches

PURPOSES = ("weights", "corrupt", "dropout", "student", "sample", "order")


def draws(seed: int, indices: list[int]) -> list[torch.Tensor]:
    noise = SampleNoise(seed, indices)
    return [noise.normal(2, 3), noise.uniform(4), noise.normal(1)]


def test_noise_of_a_sample_does_not_depend_on_its_batch():
    together = draws(3, [4, 7, 0, 100])
    for place, index in enumerate([4, 7, 0, 100]):
        alone = draws(3, [index])
        reordered = draws(3, [9, index, 4])
        for whole, single, other in zip(together, alone, reordered, strict=True):
            assert torch.equal(whole[place], single[0])
            assert torch.equal(whole[place], other[1])


def test_noise_differs_by_seed_index_and_draw():
    seen = [draws(seed, [index])[0] for seed in (0, 1, 2) for index in (0, 1, 2)]
    noise = SampleNoise(0, [0])
    seen += [noise.normal(2, 3), noise.normal(2, 3)][1:]
    assert len({tuple(values.flatten().tolist()) for values in seen}) == 10


def test_an_element_depends_on_seed_sample_draw_and_place_only():
    """Not on the number of elements, of samples, or of what was drawn before."""
    long, short = SampleNoise(3, [5, 9]), SampleNoise(3, [9])
    for draw in ("normal", "uniform", "normal"):
        whole, part = getattr(long, draw)(3, 7), getattr(short, draw)(10)
        assert torch.equal(whole.flatten(1)[1, :10], part[0])
    first, second = SampleNoise(3, [9]), SampleNoise(3, [9])
    first.uniform(100), second.normal(2)  # both are the first draw
    assert torch.equal(first.normal(10), second.normal(10))


def test_noise_is_standard():
    """Moments and the Kolmogorov-Smirnov distance of 100,000 numbers, at 3.5 standard errors or more."""
    noise = SampleNoise(0, list(range(200)))
    normal, uniform = noise.normal(500), noise.uniform(500)
    assert normal.shape == uniform.shape == (200, 500) and normal.dtype == uniform.dtype == torch.float32
    assert abs(normal.mean()) < 0.012 and abs(normal.var() - 1) < 0.016
    assert abs((normal**4).mean() - 3) < 0.11
    assert uniform.min() >= 0 and uniform.max() < 1
    ranks = torch.arange(1, 100_001) / 100_000
    for probability in (uniform, torch.special.ndtr(normal.double())):
        assert (probability.flatten().sort().values - ranks).abs().max() < 1.95 / 100_000**0.5  # p = 0.001
    # The pairs of a transform, neighbouring samples, and consecutive draws are uncorrelated.
    for one, other in (
        (normal[:, ::2], normal[:, 1::2]),
        (normal[1:], normal[:-1]),
        (normal, noise.normal(500)),
    ):
        assert abs((one * other).mean()) < 3.5 / one.numel() ** 0.5


def test_uniform_bits_are_fixed():
    """The same bits on every device and in every version: samples of a seed can be drawn again."""
    noise = SampleNoise(7, [0, 2**32 + 5])
    assert len(noise) == 2
    assert (noise.uniform(5) * 2**24).long().tolist() == [
        [16125448, 14272389, 5024442, 7858944, 2936653],
        [14072238, 8471529, 5224838, 713111, 15972721],
    ]


@pytest.mark.skipif(not torch.cuda.is_available(), reason="requires a GPU")
def test_noise_is_the_same_on_a_gpu():
    here, there = SampleNoise(0, list(range(64))), SampleNoise(0, list(range(64)), "cuda")
    assert torch.equal(here.uniform(4, 32, 32), there.uniform(4, 32, 32).cpu())
    assert torch.allclose(here.normal(4, 32, 32), there.normal(4, 32, 32).cpu(), atol=1e-5)


def test_folded_seeds_are_distinct_and_fit_a_generator():
    parts = [(seed, purpose, step) for seed in range(10) for purpose in PURPOSES for step in range(100)]
    seeds = {fold(*part) for part in parts}
    assert len(seeds) == len(parts)
    assert all(0 <= seed < 2**63 for seed in seeds)
    # Parts are kept apart: digits do not run together.
    assert fold(1, "a", 12) != fold(11, "a", 2) and fold(1, 12) != fold(11, 2)


def test_folded_seeds_are_the_same_in_every_process():
    """Fixed numbers, not Python's hash: a run resumed elsewhere draws what it would have drawn."""
    assert fold(0, "corrupt", 7) == 1429867820814804584


def test_generators_of_equal_parts_agree():
    first, again, other = (generator(1, "corrupt", step) for step in (5, 5, 6))
    draw = torch.rand(4, generator=first)
    assert torch.equal(draw, torch.rand(4, generator=again))
    assert not torch.equal(draw, torch.rand(4, generator=other))


@pytest.mark.parametrize("objective", ["masked", "diffusion", "flow"])
def test_drawing_leaves_the_global_state_alone(objective):
    """So sampling and measuring between training steps change no training step."""
    config = tiny(f"objective={objective}")
    net = build_backbone(config).eval()
    codes = torch.linspace(-1, 1, 64).view(16, 4)
    model = AnytimeSampler(net, config, PatchCodebook(codes, Patches((1, 8, 8), 2)))
    x = torch.zeros(2, 16, dtype=torch.long) if objective == "masked" else torch.zeros(2, 1, 8, 8)
    torch.manual_seed(5)
    before = torch.get_rng_state()
    SampleNoise(0, [0, 1]).normal(3)
    SampleNoise(0, [0, 1]).uniform(3)
    batch_indices(0, 3, 8, 20)
    initialise_backbone(net, generator(0, "weights"))
    model.objective.corrupt(x, BatchNoise(generator(0, "corrupt", 1), len(x)))
    model.sample([1, 2, 3], guidance=2.0)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize(("world_size", "micro_batches"), [(1, 1), (2, 1), (1, 4), (2, 2)])
def test_slices_of_a_batch_make_the_whole_batch(world_size, micro_batches):
    """Every row is in one slice, and its noise does not depend on the slices."""
    whole = BatchNoise(generator(0, "corrupt", 3), 8)
    drawn = [whole.uniform(), whole.normal(2), whole.uniform(3)]
    slices = [
        BatchSlice(rank, world_size, n, micro_batches)
        for n in range(micro_batches)
        for rank in range(world_size)
    ]
    parts = []
    for batch_slice in slices:
        noise = BatchNoise(generator(0, "corrupt", 3), 8, batch_slice)
        parts.append([noise.uniform(), noise.normal(2), noise.uniform(3)])
    for all_rows, of_slices in zip(drawn, zip(*parts, strict=True), strict=True):
        assert torch.equal(all_rows, torch.cat(of_slices))


def test_the_noise_of_a_whole_batch_is_what_the_generator_gives():
    noise, g = BatchNoise(generator(1), 5), generator(1)
    assert torch.equal(noise.uniform(), torch.rand(5, generator=g))
    assert torch.equal(noise.normal(2, 3), torch.randn(5, 2, 3, generator=g))
