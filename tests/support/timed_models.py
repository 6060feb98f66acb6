"""The model that bench times, on the CPU."""

import torch

from eltlab.common.seeds import slice_of_this_process
from eltlab.data.build import build_data
from eltlab.training.timing import TimedModel

CPU = torch.device("cpu")


def model(config) -> TimedModel:
    batches = build_data(config).batches(config, 0, CPU, slice_of_this_process(config.trainer.accumulate))
    return TimedModel(config, CPU, "32-true", batches)
