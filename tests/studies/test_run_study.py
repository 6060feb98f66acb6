"""How a sweep starts its workers: how many, with which GPU, and with which environment."""

import subprocess
import sys
from pathlib import Path

import pytest
from support.small_studies import GRID, opened, written
from support.storage_urls import URL
from support.waiting import until

from eltlab.studies import run_study


@pytest.mark.parametrize("given", [[f"storage={URL}"], []])
def test_workers_get_the_storage_from_the_environment(monkeypatch, given):
    started = {}
    monkeypatch.setattr(subprocess, "Popen", lambda command, **rest: started.update(rest, command=command))
    monkeypatch.setenv("ELTLAB_STORAGE", "" if given else URL)
    run_study.start_worker(1, ["small", *given, "workers=2"])
    assert started["command"][3:6] == ["small", "workers=2", "worker=1"]
    assert started["env"]["ELTLAB_STORAGE"] == URL


@pytest.mark.parametrize(
    ("visible", "gpus"), [("", []), ("-1", []), ("3", ["3"]), ("2,GPU-ab,", ["2", "GPU-ab"])]
)
def test_the_gpus_are_those_that_this_process_may_use(monkeypatch, visible, gpus):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    assert run_study.visible_gpus() == gpus


@pytest.mark.parametrize(
    ("visible", "more", "threads", "storage", "workers"),
    [
        ("", [], 2, None, 4),  # as many as the threads leave room for
        ("", [], 3, None, 2),
        ("", [], 16, None, 1),
        ("", [], None, None, 1),
        ("0,1,2", [], 2, None, 4),  # trials on the CPU
        ("0,1,2", ["trainer.accelerator=auto"], 2, None, 3),  # one per GPU
        ("", ["trainer.accelerator=auto"], 2, None, 4),
        ("0,1,2", ["trainer.accelerator=auto"], 2, "sqlite:///a.db", 1),
    ],
)
def test_workers_are_one_per_gpu_or_as_many_as_the_cores_allow(
    tmp_path, monkeypatch, visible, more, threads, storage, workers
):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    monkeypatch.setattr(run_study, "cores", lambda: 8)
    study = opened(tmp_path, changes={"threads": threads}, overrides=more)
    assert run_study.default_workers(study, storage) == workers


@pytest.mark.integration
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_each_worker_sees_its_own_gpu(tmp_path, monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "5,7")
    seen = []
    for number in range(3):
        process = run_study.start_worker(number, [written(tmp_path, GRID), f"runs_dir={tmp_path / 'runs'}"])
        environment = Path(f"/proc/{process.pid}/environ")
        until(environment.read_bytes)  # empty until the kernel has filled the new process's stack
        variables = environment.read_bytes().split(b"\0")
        process.kill()
        process.wait()
        seen += [each for each in variables if each.startswith(b"CUDA_VISIBLE_DEVICES=")]
    assert seen == [b"CUDA_VISIBLE_DEVICES=" + gpu for gpu in (b"5", b"7", b"5")]
