"""One torch thread per process, a cache separate from the user's, and the plugins in support/."""

import os
import signal
from functools import partial

# Set before torch is imported; the subprocesses that tests start inherit it.
os.environ["OMP_NUM_THREADS"] = "1"

import pytest
import torch
from hypothesis import settings

from eltlab.config.schema import MetricsConfig
from eltlab.data.images.digits import load_digits
from eltlab.evaluation.classifier import ClassifierMetrics

torch.set_num_threads(1)
# A shell starts background jobs with Ctrl-C ignored, and the commands under test would inherit that.
signal.signal(signal.SIGINT, signal.default_int_handler)

pytest.register_assert_rewrite("support")
PLUGINS = """
    tiers browser postgres benchmarks classifier_metrics clip_files digits encoded_sets
    extension_files image_files known_sets measured_runs rank_runs run_outcomes slurm
    small_inception sprite_runs storages tokenizers trained_run
"""
pytest_plugins = [f"support.{name}" for name in PLUGINS.split()]

# The same examples every time, and no deadline: a test counts or compares, it does not time.
settings.register_profile("eltlab", deadline=None, derandomize=True, database=None)
settings.load_profile("eltlab")


@pytest.fixture(scope="session", autouse=True)
def cache(tmp_path_factory, pytestconfig):
    """One cache for all workers of this test run, so that nothing is fitted twice."""
    base = tmp_path_factory.getbasetemp()
    # Under xdist each worker has its own folder inside the folder of the test run.
    run = base.parent if "PYTEST_XDIST_WORKER" in os.environ else base
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ELTLAB_CACHE", str(run / "cache"))
        if pytestconfig.getoption("limit") is not None:
            # Fitted here, so that its four seconds do not count for the test that first needs it.
            ClassifierMetrics(*load_digits(), 10, MetricsConfig(extractor="classifier"))
        yield run / "cache"


@pytest.fixture
def uncalibrated(monkeypatch, tmp_path):
    """An empty cache, in which no machine has been measured."""
    monkeypatch.setenv("ELTLAB_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def graphs(monkeypatch):
    """The graphs that torch.compile makes in a test. A recording backend replaces inductor: dynamo traces
    the graphs, but nothing is compiled."""
    traced = []

    def record(graph, example_inputs):
        traced.append(graph)
        return graph.forward

    torch._dynamo.reset()
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend=record))
    yield traced
    torch._dynamo.reset()
