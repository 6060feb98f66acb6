"""Masked token modelling (MaskGIT, arXiv 2202.04200): corruption, losses and iterative unmasking."""

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from eltlab.common.seeds import BatchNoise, SampleNoise
from eltlab.config.schema import MaskedSamplerConfig


class MaskedTarget(NamedTuple):
    ids: Tensor  # [B, T], the true tokens
    masked: Tensor  # [B, T], bool: the positions that the loss counts
    positions: Tensor  # scalar: masked positions per sample, the mean over the whole batch


class Masked:
    """The masked objective and its sampler, for token ids [B, T] in 0…codes − 1; `codes` is [MASK].

    Args:
        codes: size K of the codebook.
        label_smoothing: of the ground-truth cross-entropy (MaskGIT: 0.1).
    """

    def __init__(self, codes: int, label_smoothing: float = 0.1) -> None:
        self.codes = codes
        self.label_smoothing = label_smoothing

    def corrupt(
        self, ids_BT: Tensor, noise: BatchNoise, u_B: Tensor | None = None
    ) -> tuple[tuple[Tensor], MaskedTarget]:
        """Masks ⌈T·cos(π/2·u)⌉ random tokens of each sample, at least one.

        u_B: u of each sample of the whole batch; None: u ~ U(0, 1).
        """
        T = ids_BT.shape[1]
        # Counted over the whole batch, so that every masked position has the same weight in any slice.
        all_B = noise.uniform_whole_batch() if u_B is None else u_B
        counts_B = torch.ceil(T * self.level(all_B)).clamp(1, T)
        order_BT = noise.uniform(T).argsort(dim=1)
        # argsort of a permutation is its inverse: the rank of each position in the random order.
        masked_BT = order_BT.argsort(dim=1) < noise.own_rows(counts_B)[:, None]
        target = MaskedTarget(ids_BT, masked_BT, counts_B.mean())
        return (ids_BT.masked_fill(masked_BT, self.codes),), target

    def level(self, u: Tensor) -> Tensor:
        """The mask ratio cos(π/2·u)."""
        return torch.cos(math.pi / 2 * u)

    def losses(self, logits_BTK: Tensor, target: MaskedTarget) -> Tensor:
        """GT: cross-entropy with label smoothing, summed over the masked positions of each sample and divided
        by their mean number in the whole batch: [B]. The mean is that over all masked positions."""
        losses_BT = F.cross_entropy(
            logits_BTK.float().flatten(0, 1),
            target.ids.flatten(),
            label_smoothing=self.label_smoothing,
            reduction="none",
        ).view_as(target.ids)
        return masked_sums(losses_BT, target)

    def distill(self, student_BTK: Tensor, teacher_BTK: Tensor, target: MaskedTarget) -> Tensor:
        """Dist: −Σ_v P_teacher(v)·log P_student(v), no temperature, mean over the masked positions."""
        teacher = F.softmax(teacher_BTK.detach().float(), dim=-1)
        losses_BT = -(teacher * F.log_softmax(student_BTK.float(), dim=-1)).sum(dim=-1)
        return masked_sums(losses_BT, target).mean()

    def sample(
        self,
        predict: Callable[[int, tuple[Tensor, ...]], Tensor],
        noise: SampleNoise,
        shape: tuple[int, ...],
        sampler: MaskedSamplerConfig,
    ) -> Tensor:
        """Draws ids [samples, tokens] for shape (tokens,). predict(step, (ids,)) gives the (guided) logits.

        At step k of K, with r = (k + 1)/K, every masked token is drawn from softmax(logits/T_k) with
        T_k = temperature + temperature_range·(1 − r). The tokens of the highest confidence, log p +
        Gumbel·confidence_noise·(1 − r), are kept; the rest stays [MASK].
        """
        (tokens,), steps = shape, sampler.steps
        masked_before = tokens
        ids = torch.full((len(noise), tokens), self.codes, device=noise.device)
        for step, masked_after in enumerate(unmasking_schedule(tokens, steps)):
            r = (step + 1) / steps
            logits = predict(step, (ids,)).float()
            tempered = logits / (sampler.temperature + sampler.temperature_range * (1 - r))
            drawn = draw_tokens(tempered, noise.uniform(tokens))
            confidence = F.log_softmax(logits, dim=-1).gather(-1, drawn.unsqueeze(-1)).squeeze(-1)
            if scale := sampler.confidence_noise * (1 - r):  # 0 in the last step
                gumbel = -torch.log(-torch.log(noise.uniform(tokens).clamp(1e-20, 1 - 1e-7)))
                confidence = confidence + scale * gumbel
            # Only masked tokens can be chosen: an unmasked token is never drawn again.
            confidence = confidence.masked_fill(ids != self.codes, -math.inf)
            chosen = confidence.topk(masked_before - masked_after, dim=1).indices
            ids = ids.scatter(1, chosen, drawn.gather(1, chosen))
            masked_before = masked_after
        return ids


def unmasking_schedule(tokens: int, steps: int) -> list[int]:
    """How many tokens are still masked after each step: ⌊tokens·cos(π/2·(k + 1)/steps)⌋.

    Every step unmasks at least one token, and none is masked after the last. Raises ValueError unless
    1 ≤ steps ≤ tokens.
    """
    if not 1 <= steps <= tokens:
        raise ValueError(f"{tokens} tokens are unmasked in 1 to {tokens} steps, not {steps}")
    counts: list[int] = []
    before = tokens
    for step in range(steps):
        cosine = math.floor(tokens * math.cos(math.pi / 2 * (step + 1) / steps))
        before = min(max(cosine, steps - 1 - step), before - 1)
        counts.append(before)
    return counts


def draw_tokens(logits_BTK: Tensor, uniform_BT: Tensor) -> Tensor:
    """Categorical samples [B, T] by inverting the CDF, from one uniform number per token."""
    cdf = F.softmax(logits_BTK, dim=-1).cumsum(dim=-1)
    threshold = uniform_BT.unsqueeze(-1) * cdf[..., -1:]
    index = torch.searchsorted(cdf, threshold, right=True).squeeze(-1)
    return index.clamp_max(logits_BTK.shape[-1] - 1)  # rounding may pass the last code


def masked_sums(values_BT: Tensor, target: MaskedTarget) -> Tensor:
    """The sum over each sample's masked positions, relative to how many a sample of the batch has: [B]."""
    return (values_BT * target.masked).sum(dim=1) / target.positions
