"""The masked objective: corruption, losses, and a sampler that unmasks by its schedule."""

import math
from itertools import pairwise

import pytest
import torch
import torch.nn.functional as F
from hypothesis import example, given
from hypothesis import strategies as st
from support.generators import generator

from eltlab.common.seeds import BatchNoise, SampleNoise
from eltlab.config.schema import MaskedSamplerConfig
from eltlab.generation import masked
from eltlab.generation.masked import Masked, MaskedTarget, draw_tokens, unmasking_schedule

CODES, TOKENS = 7, 16


def random_ids(count: int, seed: int = 3) -> torch.Tensor:
    return torch.randint(CODES, (count, TOKENS), generator=generator(seed))


# --- corruption and losses ------------------------------------------------------------------------


def test_corrupt_masks_a_cosine_share_of_each_sample():
    ids = random_ids(500)
    (seen,), target = Masked(CODES).corrupt(ids, BatchNoise(generator(1), len(ids)))
    u = torch.rand(500, generator=generator(1))  # the objective's first draw
    expected = torch.ceil(TOKENS * torch.cos(math.pi / 2 * u.double())).clamp(min=1)
    counts = target.masked.sum(dim=1)
    assert torch.equal(counts, expected.long())
    assert counts.min() == 1 and counts.max() == TOKENS and counts.unique().numel() == TOKENS
    assert torch.equal(seen == CODES, target.masked)
    assert torch.equal(seen[~target.masked], ids[~target.masked])
    assert torch.equal(target.ids, ids)


def test_corrupt_masks_every_position_equally_often():
    _, target = Masked(CODES).corrupt(random_ids(4000), BatchNoise(generator(), 4000))
    share = target.masked.float().mean(dim=0)
    # E[⌈T·cos(π/2·u)⌉/T] is 2/π plus a little from rounding up.
    assert abs(share.mean() - (2 / math.pi + 0.5 / TOKENS)) < 0.02
    assert share.max() - share.min() < 0.05


def test_at_least_one_token_is_masked_at_the_smallest_ratio():
    _, target = Masked(CODES).corrupt(
        torch.zeros(20_000, 2, dtype=torch.long), BatchNoise(generator(), 20_000)
    )
    assert target.masked.sum(dim=1).min() == 1


def logits_and_target(count: int = 6):
    ids = random_ids(count)
    _, target = Masked(CODES).corrupt(ids, BatchNoise(generator(2), len(ids)))
    return torch.randn(2, count, TOKENS, CODES, generator=generator(4)), target


def test_losses_depend_on_the_masked_positions_only():
    (student, teacher), target = logits_and_target()
    elsewhere = torch.randn(student.shape) * 9 * ~target.masked[..., None]
    there = torch.randn(student.shape) * target.masked[..., None]
    objective = Masked(CODES)
    assert torch.equal(objective.losses(student, target), objective.losses(student + elsewhere, target))
    assert not torch.allclose(objective.losses(student, target), objective.losses(student + there, target))
    distilled = objective.distill(student, teacher, target)
    assert torch.equal(distilled, objective.distill(student + elsewhere, teacher, target))
    assert torch.equal(distilled, objective.distill(student, teacher + elsewhere, target))
    assert not torch.allclose(distilled, objective.distill(student, teacher + there, target))


@pytest.mark.parametrize("smoothing", [0.0, 0.1, 0.5])
def test_loss_is_smoothed_cross_entropy_over_masked_positions(smoothing):
    """Targets (1 − ε)·onehot + ε/K; the mean is over the masked positions of the whole batch."""
    (logits, _), target = logits_and_target()
    targets = (1 - smoothing) * F.one_hot(target.ids, CODES) + smoothing / CODES
    losses = -(targets * torch.log_softmax(logits, dim=-1)).sum(-1)
    got = Masked(CODES, smoothing).losses(logits, target)
    assert got.shape == (len(logits),)
    torch.testing.assert_close(got.mean(), losses[target.masked].mean())


def test_distill_is_soft_cross_entropy_without_gradient_to_the_teacher():
    (student, teacher), target = logits_and_target()
    student.requires_grad_()
    teacher.requires_grad_()
    got = Masked(CODES).distill(student, teacher, target)
    p, log_q = torch.softmax(teacher, dim=-1), torch.log_softmax(student, dim=-1)
    torch.testing.assert_close(got, -(p * log_q).sum(-1)[target.masked].mean())
    got.backward()
    assert teacher.grad is None or not teacher.grad.any()
    assert student.grad.abs().sum() > 0
    assert not student.grad[~target.masked].any()


# --- the schedule of unmasking --------------------------------------------------------------------


@st.composite
def tokens_and_steps(draw):
    tokens = draw(st.integers(1, 300))
    return tokens, draw(st.integers(1, tokens))


@given(tokens_and_steps())
@example((256, 24))
@example((300, 300))
@example((1, 1))
def test_unmasking_schedule_falls_to_zero_and_follows_the_cosine(case):
    tokens, steps = case
    counts = unmasking_schedule(tokens, steps)
    assert len(counts) == steps and counts[-1] == 0
    before = tokens
    for step, count in enumerate(counts):
        remaining = steps - 1 - step
        assert remaining <= count < before
        cosine = math.floor(tokens * math.cos(math.pi / 2 * (step + 1) / steps))
        if remaining <= cosine < before:
            assert count == cosine
        before = count


@pytest.mark.parametrize(("tokens", "steps"), [(16, 17), (16, 0)])
def test_more_steps_than_tokens_are_refused(tokens, steps):
    with pytest.raises(ValueError, match="steps"):
        unmasking_schedule(tokens, steps)


# --- the sampler ----------------------------------------------------------------------------------


def sampled(predict, steps=6, count=5, tokens=TOKENS, **settings):
    """The ids drawn, and the ids that the network saw at each step."""
    seen = []

    def recording(step, inputs):
        (ids,) = inputs
        assert step == len(seen)
        seen.append(ids.clone())
        return predict(step, ids)

    noise = SampleNoise(0, list(range(count)))
    sampler = MaskedSamplerConfig(name="maskgit", steps=steps, **settings)
    done = Masked(CODES).sample(recording, noise, (tokens,), sampler)
    return done, seen


def random_logits(step, ids):
    return 3 * torch.randn(*ids.shape, CODES, generator=generator(step))


@pytest.mark.parametrize(("tokens", "steps"), [(16, 1), (16, 6), (16, 16), (256, 24)])
def test_masked_sampler_keeps_masks_until_chosen_and_leaves_none(tokens, steps):
    done, seen = sampled(random_logits, steps, tokens=tokens)
    assert (seen[0] == CODES).all()
    path = [*seen, done]
    left = [(ids == CODES).sum(dim=1).unique().tolist() for ids in path]
    # Every sample has as many masks as the schedule says: none has become a code unchosen.
    assert left == [[count] for count in (tokens, *unmasking_schedule(tokens, steps))]
    for before, after in pairwise(path):
        written = before != CODES
        assert torch.equal(before[written], after[written])
    assert done.min() >= 0 and done.max() < CODES


def test_a_perfect_predictor_reproduces_the_ids():
    ids = random_ids(5)
    done, _ = sampled(lambda step, seen: 200.0 * F.one_hot(ids, CODES))
    assert torch.equal(done, ids)


def test_tokens_are_drawn_from_the_predicted_distribution():
    """Codes of probability zero never appear, at any step."""
    allowed = torch.randint(CODES, (5, TOKENS, 2), generator=generator(9))
    logits = torch.full((5, TOKENS, CODES), -math.inf).scatter(-1, allowed, 0.0)
    done, _ = sampled(lambda step, ids: logits)
    assert (done.unsqueeze(-1) == allowed).any(-1).all()


def test_temperature_falls_over_the_steps(monkeypatch):
    """T_k = 0.5 + 0.8·(1 − r), r = (k + 1)/K (PAPER, Settings)."""
    seen = []

    def recording(logits, uniform):
        seen.append(logits)
        return draw_tokens(logits, uniform)

    monkeypatch.setattr(masked, "draw_tokens", recording)
    logits = torch.randn(5, TOKENS, CODES, generator=generator())
    sampled(lambda step, ids: logits, steps=5)
    got = [(logits / tempered).mean().item() for tempered in seen]
    assert got == pytest.approx([0.5 + 0.8 * (1 - (k + 1) / 5) for k in range(5)], rel=1e-5)


def test_the_most_confident_tokens_are_written_first():
    """Without noise, confidence is the untempered log p of the drawn token."""
    margins = torch.linspace(0.2, 4, TOKENS)[torch.randperm(TOKENS, generator=generator())]
    logits = F.one_hot(random_ids(5), CODES) * margins[:, None]
    settings = {"temperature": 1e-3, "temperature_range": 0.0, "confidence_noise": 0.0}
    done, seen = sampled(lambda step, ids: logits, **settings)
    assert torch.equal(done, random_ids(5))
    for ids in seen[1:]:
        written = ids != CODES
        lowest = margins.expand(5, -1).masked_fill(~written, math.inf).amin(dim=1)
        highest = margins.expand(5, -1).masked_fill(written, -math.inf).amax(dim=1)
        assert (lowest > highest).all()


@pytest.mark.parametrize("amount", [4.5, 1.0])
def test_confidence_is_log_p_plus_gumbel_noise_of_the_step(amount):
    """Two tokens in two steps: with noise·(1 − r), r = 1/2, on log p the likelier one is written first
    with probability sigmoid(Δ log p / (noise/2)), the distribution of Gumbel's argmax."""
    margins = torch.tensor([50.0, 0.1])
    logits = torch.zeros(3000, 2, CODES)
    logits[..., 0] = margins
    settings = {"temperature": 1e-3, "temperature_range": 0.0, "confidence_noise": amount}
    _, seen = sampled(lambda step, _: logits, steps=2, count=3000, tokens=2, **settings)
    log_p = torch.log_softmax(logits[0], dim=-1)[:, 0]
    p = torch.sigmoid((log_p[0] - log_p[1]) / (amount / 2))
    share = (seen[1][:, 0] != CODES).float().mean()
    assert abs(share - p) < 4 * (p * (1 - p) / 3000).sqrt()


def test_draw_follows_the_softmax():
    logits = torch.tensor([0.3, -1.0, 2.0, -math.inf, 0.0])
    count = 200_000
    drawn = draw_tokens(logits.expand(1, count, -1), torch.rand(1, count, generator=generator()))
    p = torch.softmax(logits, dim=0)
    share = torch.bincount(drawn.flatten(), minlength=5) / count
    assert ((share - p).abs() <= 5 * (p * (1 - p) / count).sqrt()).all()
    assert share[3] == 0


def test_draw_stays_within_the_codes_at_the_ends_of_uniform():
    logits = torch.randn(1, 1, CODES, generator=generator())
    assert draw_tokens(logits, torch.zeros(1, 1)).item() == 0
    assert draw_tokens(logits, torch.tensor([[1 - 2**-24]])).item() == CODES - 1


def test_a_loss_ignores_what_is_not_masked():
    chosen = torch.tensor([[True, False, True]])
    target = MaskedTarget(torch.zeros(1, 3, dtype=torch.long), chosen, chosen.sum())
    values = torch.tensor([[1.0, 100.0, 4.0]])
    assert masked.masked_sums(values, target).tolist() == [2.5]
