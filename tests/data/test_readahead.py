"""Worker processes read ahead in order, hand over errors, and end with the process that started them."""

import multiprocessing

import pytest
import torch
from support.errors import fails
from support.image_files import load

from eltlab.common.errors import UserError
from eltlab.data.readahead import read_ahead

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
