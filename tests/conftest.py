"""One torch thread per process, a cache separate from the user's, small configurations and networks."""

import os
import signal
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

# Set before torch is imported; the subprocesses that tests start inherit it.
os.environ["OMP_NUM_THREADS"] = "1"

import pytest
import torch
from hypothesis import settings
from torch import nn

from eltlab.common.errors import UserError
from eltlab.config.schema import Config
from eltlab.runs.compose_config import compose

torch.set_num_threads(1)
# A shell starts background jobs with Ctrl-C ignored, and the commands under test would inherit that.
signal.signal(signal.SIGINT, signal.default_int_handler)

pytest_plugins = ["browser", "postgres"]

# The same examples every time, and no deadline: a test counts or compares, it does not time.
settings.register_profile("eltlab", deadline=None, derandomize=True, database=None)
settings.load_profile("eltlab")


@pytest.fixture(scope="session", autouse=True)
def cache(tmp_path_factory):
    """One cache for all workers of this test run, so that nothing is fitted twice."""
    base = tmp_path_factory.getbasetemp()
    # Under xdist each worker has its own folder inside the folder of the test run.
    run = base.parent if "PYTEST_XDIST_WORKER" in os.environ else base
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ELTLAB_CACHE", str(run / "cache"))
        yield run / "cache"


# A run that takes moments: width 16, one unique layer x four loops, eight steps.
TINY = """model.width=16 model.heads=2 model.mlp_width=24 model.depth=4 data.codebook=16
    batch_size=8 budget.images=64 sampler.steps=4 metrics.samples=20 trainer.accelerator=cpu""".split()  # noqa: SIM905


def tiny(*overrides: str) -> Config:
    return compose([*TINY, *overrides])


def fails(function, *arguments: object) -> str:
    """The message of the UserError, which is one line."""
    with pytest.raises(UserError) as caught:
        function(*arguments)
    message = str(caught.value)
    assert message and "\n" not in message
    return message


def until(condition: Callable[[], object], seconds: float = 600.0, log: Path | None = None) -> None:
    """Waits until other processes make the condition true; if they do not, the log is shown."""
    deadline = time.monotonic() + seconds
    while not condition():
        said = log.read_text() if log and log.is_file() else "it did not happen"
        assert time.monotonic() < deadline, said
        time.sleep(0.02)


@pytest.fixture
def graphs(monkeypatch):
    """The graphs that torch.compile makes in a test. A counting backend replaces inductor: dynamo traces
    the graphs, but nothing is compiled."""
    made = []

    def counting(graph, example_inputs):
        made.append(graph)
        return graph.forward

    torch._dynamo.reset()
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend=counting))
    yield made
    torch._dynamo.reset()


def perturbed(module: nn.Module, seed: int = 0, scale: float = 0.1) -> nn.Module:
    """The module with noise on every parameter: layers that start at zero hide what feeds them."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(scale * torch.randn(parameter.shape, generator=generator))
    return module
