"""Worker processes read ahead in order, hand over errors, and end with the process that started them."""

import multiprocessing
import os
import signal
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import pytest
import torch
from support.errors import fails
from support.image_files import load
from support.waiting import until

from eltlab.common.errors import UserError
from eltlab.data.readahead import read_ahead

# DataLoader's own check of its parent runs between items only, so this worker would stay for ever.
STUCK = """
import os, pathlib, signal, sys
from eltlab.data.readahead import read_ahead

class Stuck:
    def __getitem__(self, item):
        pathlib.Path(sys.argv[1]).write_text(f"{os.getpid()}.")
        signal.pause()

next(read_ahead(Stuck(), [0], 1, pin=False))
"""
WORKERS = [0, pytest.param(2, marks=pytest.mark.integration)]


class Squares:
    """Numbers without a square are refused."""

    def __getitem__(self, item: int) -> torch.Tensor:
        if item < 0:
            raise UserError(f"no {item}")
        return torch.tensor(item**2)


@pytest.mark.parametrize("workers", WORKERS)
def test_items_are_read_in_the_requested_order(workers):
    items = [5, 1, 1, 9, 0, 7, 3]
    read = read_ahead(Squares(), items, workers, pin=False)
    assert [int(value) for value in read] == [item**2 for item in items]


@pytest.mark.parametrize("workers", WORKERS)
def test_an_error_is_raised_at_its_item_and_no_worker_remains(workers):
    read = read_ahead(Squares(), [2, 3, -1, 4], workers, pin=False)
    assert [int(next(read)), int(next(read))] == [4, 9]
    assert len(multiprocessing.active_children()) == workers
    assert fails(next, read) == "no -1"
    assert not multiprocessing.active_children()


@pytest.mark.parametrize("workers", WORKERS)
def test_streaming_leaves_the_global_generator_alone(image_folder, workers):
    train, _ = load(image_folder, in_memory=False, workers=workers)
    state = torch.random.get_rng_state()
    list(train.read_in_order(20))
    assert torch.equal(torch.random.get_rng_state(), state)


@pytest.mark.integration
@pytest.mark.skipif(sys.platform != "linux", reason="only Linux ends a process with its parent")
def test_workers_do_not_outlive_a_killed_process(tmp_path):
    file = tmp_path / "worker"
    reader = subprocess.Popen([sys.executable, "-c", STUCK, str(file)])
    until(lambda: file.is_file() and file.read_text().endswith("."), process=reader)
    worker = Path("/proc", file.read_text().rstrip("."))
    reader.kill()
    reader.wait()
    try:
        until(lambda: not worker.exists() or "\nState:\tZ" in (worker / "status").read_text(), 60)
    finally:
        with suppress(ProcessLookupError):
            os.kill(int(worker.name), signal.SIGKILL)
