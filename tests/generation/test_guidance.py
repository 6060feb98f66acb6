"""Guidance: its formula, and how few evaluations it takes."""

import pytest
import torch
from support.untrained_samplers import untrained

from eltlab.generation.guidance import guide

NULL = 10


def recording(rows: list[int]):
    """A network that scales its input by the label (the null label: 0.5) and records its batch sizes."""

    def predict(parts, labels_B):
        rows.append(len(labels_B))
        assert all(len(part) == len(labels_B) for part in parts)
        gain = torch.where(labels_B == NULL, 0.5, labels_B.float())
        return parts[0] * gain[:, None] + parts[1][:, None]

    return predict


@pytest.mark.parametrize("scale", [0, 1, 0.0, 1.0, 3.0, 0.5, 25.0])
def test_guidance_is_its_formula_with_as_few_evaluations(scale):
    """unconditional + w·(conditional − unconditional); w = 0 and 1 need one evaluation."""
    inputs = (torch.randn(3, 4), torch.rand(3))
    labels = torch.tensor([2, 0, 7])
    rows: list[int] = []
    got = guide(recording(rows), inputs, labels, NULL, scale)
    conditional = recording([])(inputs, labels)
    unconditional = recording([])(inputs, torch.full((3,), NULL))
    torch.testing.assert_close(got, unconditional + scale * (conditional - unconditional))
    assert sum(rows) == 3 * (1 if scale in (0, 1) else 2) and len(rows) == 1


def test_class_label_and_guidance_reach_the_samples():
    model = untrained()
    same_noise = {"seed": 1, "indices": [0]}

    def draw(label, guidance):
        return model.sample([label], guidance=guidance, **same_noise)

    assert not torch.equal(draw(1, 1.0), draw(2, 1.0))
    assert not torch.equal(draw(1, 1.0), draw(1, 6.0))
    assert torch.equal(draw(1, 0.0), draw(2, 0.0))  # unconditional
    assert torch.equal(draw(1, 0.0), draw(10, 1.0))  # the null label
