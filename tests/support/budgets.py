"""Budgets of a tiny run."""

from eltlab.config.cost.flops import train_flops
from support.tiny_run import TINY

FREE = [text for text in TINY if not text.startswith("budget.")]


def half_a_step(config) -> float:
    return train_flops(config) * config.batch_size / 2
