"""The held-out loss of each exit: its levels, its noise, and a standard error that repetition confirms."""

import math
from dataclasses import replace
from functools import cache

import pytest
import torch
from support.encoded_sets import on
from support.image_files import small
from support.networks import perturbed
from support.tiny_run import tiny
from torch import Tensor

from eltlab.common.seeds import WHOLE_BATCH, BatchNoise, generator
from eltlab.data.build import TrainingData, build_data
from eltlab.data.images.image_set import as_input, choose_subset
from eltlab.evaluation import heldout_loss
from eltlab.evaluation.heldout_loss import (
    Loss,
    batch_within_memory,
    loss_columns,
    loss_protocol,
    measure_losses,
)
from eltlab.generation.anytime_sampler import AnytimeSampler
from eltlab.model.backbone import build_backbone

objectives = pytest.mark.parametrize("objective", ["masked", "diffusion", "flow"])


@cache
def model_and_data(objective: str, seed: int) -> tuple[AnytimeSampler, TrainingData]:
    torch.manual_seed(seed)
    config = tiny(f"objective={objective}")
    data = build_data(config)
    return AnytimeSampler(perturbed(build_backbone(config)).eval(), config, data.tokenizer), data


def measured(objective: str, exits: list[int], count: int = 30, seed: int = 0) -> dict[int, Loss]:
    model, data = model_and_data(objective, seed)
    return measure_losses(model, data.inputs(data.test), data.test.labels, exits, torch.arange(count))


def record(monkeypatch: pytest.MonkeyPatch, objective: str, seed: int = 0) -> list[tuple[Tensor, ...]]:
    """The levels, the corrupted inputs and the clean inputs of each batch of later measurements."""
    model, _ = model_and_data(objective, seed)
    honest, found = model.objective.corrupt, []

    def corrupt(x: Tensor, noise: BatchNoise, u: Tensor) -> tuple:
        result = honest(x, noise, u)
        found.append((noise.own_rows(u), result[0][0], x))
        return result

    monkeypatch.setattr(model.objective, "corrupt", corrupt)
    return found


@objectives
def test_each_example_has_a_level_in_each_stratum(objective: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(heldout_loss, "PAIRS", 100)
    batches = record(monkeypatch, objective)
    measured(objective, [1])  # 30 examples, four times
    levels, _, x = (torch.cat(part) for part in zip(*batches, strict=True))
    assert torch.equal(levels.sort().values, ((torch.arange(120).double() + 0.5) / 120).float())
    strata = (levels.view(4, 30) * 4).floor()
    assert torch.equal(strata, torch.arange(4.0)[:, None].expand(4, 30))
    assert torch.equal(x[:30], x[90:])
    # Shuffled: the examples are sorted by class.
    assert abs(torch.corrcoef(torch.stack([levels[:30], torch.arange(30.0)]))[0, 1]) < 0.5


@objectives
def test_every_run_is_measured_on_the_same_corrupted_examples(
    objective: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever the weights, and whatever fits into memory."""
    monkeypatch.setattr(heldout_loss, "PAIRS", 100)
    seen = []
    for seed, values in ((0, 2**25), (1, 2**12)):
        monkeypatch.setattr(heldout_loss, "VALUES", values)
        batches = record(monkeypatch, objective, seed)
        measured(objective, [2], seed=seed)
        assert (len(batches) > 1) == (values < 2**20)
        seen.append(torch.cat([z for _, z, _ in batches]))
    torch.testing.assert_close(*seen)
    assert not torch.equal(seen[0][:30], seen[0][30:60])  # repeats have noise of their own


@objectives
def test_the_loss_is_that_of_training_on_all_pairs_at_once(
    objective: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(heldout_loss, "PAIRS", 100)
    model, data = model_and_data(objective, 0)
    batches = record(monkeypatch, objective)
    found = measured(objective, [1, 3, 6])
    assert len(batches) == 1 and list(found) == [1, 3, 6]  # one pass, also beyond the four loops trained
    x = torch.cat([as_input(data.inputs(data.test)[torch.arange(30)])] * 4)
    levels, _, clean = batches[0]
    assert torch.equal(clean, x)
    noise = heldout_loss.PairNoise(torch.arange(120), slice(0, 120), model.device)
    inputs, target = model.objective.corrupt(x, noise, levels)
    for n, loss in found.items():
        with torch.inference_mode():
            pred = model.backbone(*inputs, labels_B=data.test.labels[:30].repeat(4), exits=(n,)).exits[n]
        assert loss.mean == pytest.approx(model.objective.losses(pred, target).mean().item(), rel=1e-5)


@objectives
def test_small_batches_have_the_loss_of_large_ones(objective: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(heldout_loss, "PAIRS", 100)
    whole = measured(objective, [2, 4])
    monkeypatch.setattr(heldout_loss, "VALUES", 2**14)
    for n, loss in measured(objective, [2, 4]).items():
        assert tuple(loss) == pytest.approx(tuple(whole[n]), rel=1e-5)


@pytest.mark.parametrize(
    ("objective", "codes", "values"),
    [("masked", 128, 16 * 128 * 2), ("masked", 16, 16 * 64), ("diffusion", 16, 16 * 64)],
)
def test_a_batch_is_bounded_by_predictions_and_by_layers(
    objective: str, codes: int, values: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """16 tokens with the codes of two exits each, or what a layer works on: 16 + 2 x 24 numbers."""
    monkeypatch.setattr(heldout_loss, "VALUES", 3 * values - 1)
    config = tiny(f"objective={objective}", f"data.codebook={codes}")
    assert batch_within_memory(config, 2) == 2


@pytest.mark.integration
@objectives
@pytest.mark.parametrize(("pairs", "examples"), [(1024, 64), (1024, 1024)])
def test_the_standard_error_is_the_spread_over_random_examples(
    objective: str, pairs: int, examples: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Repeated and single examples, each time with other noise."""
    monkeypatch.setattr(heldout_loss, "PAIRS", pairs)
    model, data = model_and_data(objective, 0)
    inputs, labels = data.inputs(data.train), data.train.labels
    draws, found = generator("draws"), []
    for repetition in range(60):
        monkeypatch.setattr(heldout_loss, "NOISE", repetition)
        chosen = torch.randint(len(labels), (examples,), generator=draws)
        found.append(measure_losses(model, inputs, labels, [1], chosen)[1])
    means, errors = torch.tensor(found, dtype=torch.float64).unbind(dim=1)
    assert errors.mean() == pytest.approx(means.std(), rel=0.25)
    assert errors.std() < 0.4 * errors.mean()


def test_what_levels_and_repeats_contribute_to_the_error() -> None:
    g = generator("losses")
    level = torch.arange(4000).double()  # a loss that depends on the level only has no error
    mean, error = heldout_loss.mean_and_error((level / 4000) ** 2, torch.arange(4000), 1000)
    assert mean == pytest.approx(1 / 3, abs=1e-3) and error < 1e-4
    own = torch.randn(1000, generator=g, dtype=torch.float64)  # repeats of an example tell nothing new
    strata = torch.cat([n * 1000 + torch.randperm(1000, generator=g) for n in range(4)])
    _, error = heldout_loss.mean_and_error(own.repeat(4), strata, 1000)
    assert error == pytest.approx(own.std().item() / math.sqrt(1000), rel=0.06)


def test_the_training_loss_has_the_levels_and_noise_of_the_held_out_one(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(heldout_loss, "PAIRS", 100)
    model, data = model_and_data("diffusion", 0)
    batches = record(monkeypatch, "diffusion")
    columns = loss_columns(model, data, [2])[2]
    (levels, _, x), (same, _, seen) = batches
    assert torch.equal(levels, same) and len(x) == len(data.test) == 355
    chosen = torch.from_numpy(choose_subset(355, len(data.train), data.train.name))
    assert torch.equal(seen, as_input(data.train.images[chosen]))
    held_out = measure_losses(model, data.inputs(data.test), data.test.labels, [2])[2]
    assert (columns["heldout_loss"], columns["heldout_loss_se"]) == held_out
    assert columns["train_loss"] == measure_losses(model, seen, data.train.labels[chosen], [2])[2].mean
    # If there are fewer training images, all of them are measured.
    few = replace(data, train=data.test.subset(40))
    batches.clear()
    loss_columns(model, few, [2])
    assert [len(x) for _, _, x in batches] == [355, 120]


def test_a_loss_that_is_not_finite_is_none() -> None:
    model, data = model_and_data("diffusion", 0)
    broken = AnytimeSampler(perturbed(build_backbone(model.config)).eval(), model.config, None)
    with torch.no_grad():
        next(broken.backbone.parameters()).fill_(math.nan)
    assert set(loss_columns(broken, replace(data, train=data.test), [1])[1].values()) == {None}


@pytest.mark.parametrize("objective", ["masked", "diffusion"])
def test_streamed_images_have_the_loss_of_images_in_memory(image_folder, objective: str) -> None:
    found = []
    for in_memory in ("true", "false"):
        config = small(image_folder, f"objective={objective}", f"data.in_memory={in_memory}")
        torch.manual_seed(0)
        data = build_data(config)
        model = AnytimeSampler(perturbed(build_backbone(config)).eval(), config, data.tokenizer)
        found.append(loss_columns(model, data, [1, 4]))
    assert found[0] == found[1]


def test_latents_are_measured_as_the_set_has_them(latent_set) -> None:
    config = on(latent_set)
    data = build_data(config)
    inputs = data.inputs(data.test)
    one = inputs[torch.tensor([2, 0])]
    assert torch.equal(one, inputs[[2, 0]]) and torch.equal(one[1], inputs[[0]][0])
    mean = data.test.tensors["mean"][torch.tensor([2, 0])].float()
    assert one.shape == mean.shape and not torch.equal(one, mean)  # a sample of the posterior
    model = AnytimeSampler(perturbed(build_backbone(config)).eval(), config, data.tokenizer)
    assert loss_columns(model, data, [1])[1]["heldout_loss"] > 0


def test_noise_of_pairs_serves_what_an_objective_draws() -> None:
    pairs = torch.arange(6)
    whole = heldout_loss.PairNoise(pairs, slice(0, 6), torch.device("cpu"))
    part = heldout_loss.PairNoise(pairs, slice(2, 4), torch.device("cpu"))
    assert torch.equal(whole.normal(3)[2:4], part.normal(3))
    assert torch.equal(whole.uniform_whole_batch(), part.uniform_whole_batch())
    assert part.uniform().shape == (2,) and torch.equal(part.own_rows(pairs), pairs[2:4])
    assert BatchNoise(generator("a"), 6, WHOLE_BATCH).uniform().shape == whole.uniform().shape


def test_losses_of_different_definitions_have_different_protocols() -> None:
    def protocol(*overrides: str) -> str:
        config = tiny(*overrides)
        data = build_data(config)
        return loss_protocol(AnytimeSampler(build_backbone(config), config, data.tokenizer), data)

    plain, masked = protocol("objective=diffusion"), protocol("objective=masked")
    # How a network is made and trained does not define its loss.
    for same in ("loops=2", "model.width=32", "seed=1", "objective.label_dropout=0", "optim.lr=0.1"):
        assert protocol("objective=diffusion", same) == plain
    differing = ("objective.bias=-3", "objective.shift=1", "data.patch=4", "data.tuning=true")
    others = [protocol("objective=diffusion", key) for key in differing]
    others += [
        protocol("objective=masked", key) for key in ("data.codebook=8", "objective.label_smoothing=0")
    ]
    assert len({plain, masked, protocol("objective=flow"), *others}) == 3 + len(others)
