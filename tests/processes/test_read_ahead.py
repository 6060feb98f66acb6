"""A worker process that reads ahead is killed."""

import os
import signal

import pytest
from support.errors import fails
from support.image_files import load

from eltlab.data.images import image_files

pytestmark = pytest.mark.integration


def test_a_killed_worker_is_reported_in_one_line(image_folder, monkeypatch):
    def kill(*_: object) -> None:
        os.kill(os.getpid(), signal.SIGKILL)

    train, _ = load(image_folder, in_memory=False, workers=1)
    monkeypatch.setattr(image_files, "decode_image", kill)
    assert "data.workers=1: a worker process was killed" in fails(lambda: list(train.read_in_order(4)))
