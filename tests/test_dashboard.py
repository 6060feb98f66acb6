"""optuna-dashboard on a study, in a real browser."""

import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from studies import GRID, opened, written

from eltlab import dashboard
from eltlab.common.errors import UserError
from eltlab.studies.storage import open_storage
from eltlab.studies.study import grid_trials
from eltlab.studies.trial_queue import TrialQueue


def told(tmp_path: Path, url: str | None) -> None:
    """Starts a study and finishes its trials without training."""
    study = opened(tmp_path)
    storage = open_storage(url, study.folder, study=study.name)
    queue = TrialQueue(study, storage, "me", 60.0)
    queue.fill(grid_trials(study))
    while (claimed := queue.claim()) is not None:
        queue.finish(claimed, [10.0 + claimed.number])
    storage.close()


@contextmanager
def running(tmp_path: Path, url: str | None) -> Iterator[str]:
    """Runs the verb in its own process; yields its address."""
    more = [f"storage={url}"] if url else []
    command = [sys.executable, "-m", "eltlab.dashboard", written(tmp_path, GRID), "port=0"]
    process = subprocess.Popen(
        [*command, f"runs_dir={tmp_path / 'runs'}", *more],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    line = process.stdout.readline()
    assert line.startswith("dashboard: http://127.0.0.1:"), process.communicate()
    try:
        yield line.removeprefix("dashboard: ").strip()
    finally:
        process.send_signal(signal.SIGINT)
        _, said = process.communicate(timeout=20)
    assert process.returncode == 130
    assert [text[:9] for text in said.splitlines()] == ["small in ", "stopped; "], said


@pytest.mark.parametrize("kind", ["journal", "postgres"])
def test_a_study_is_shown(kind: str, tmp_path: Path, page: Any, request: pytest.FixtureRequest) -> None:
    url = request.getfixturevalue("postgres")() if kind == "postgres" else None
    told(tmp_path, url)
    with running(tmp_path, url) as address:
        page.goto(address)
        page.get_by_text("small").first.click()
        page.get_by_text("Best Trial (number=0)").wait_for()
        # The values of a grid are stored as parameters, so that there is something to plot.
        assert "supervision" in page.get_by_text("Params = [").inner_text()
        page.get_by_text("Study User Attributes").wait_for()
        page.get_by_text("fd_classifier").first.wait_for()  # the axis is named after the metric
    assert not page.said
    assert all(asked.startswith(address) for asked in page.asked)


def test_mistakes_are_reported_and_leave_nothing(tmp_path: Path, monkeypatch: Any) -> None:
    file, runs = written(tmp_path, GRID), f"runs_dir={tmp_path / 'runs'}"
    with pytest.raises(UserError, match=r"small was not started in .*; start it with python -m eltlab.sweep"):
        dashboard.main([file, runs])
    with pytest.raises(UserError, match=r"port=70000: must be in \[0, 65535\]"):
        dashboard.main([file, runs, "port=70000"])
    with pytest.raises(UserError, match="give one study"):
        dashboard.main([runs])
    assert not (tmp_path / "runs").exists()
    told(tmp_path, None)
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        # The sweep's keys change nothing here, but a study may be invalid without them.
        (tmp_path / "small.yaml").write_text(f"{Path(file).read_text()}sampler: random\n")
        taken_keys = ["workers=2", "seeds=[0,1]", "trials=3", "threads=1", "lease=9", "retry=true"]
        with pytest.raises(UserError, match=f"port={port}: Address already in use"):
            dashboard.main([file, runs, f"port={port}", *taken_keys])
        written(tmp_path, GRID)
        with pytest.raises(UserError, match=rf"port={port}: Address already in use; set a different port"):
            dashboard.main([file, runs, f"port={port}"])
    monkeypatch.setitem(sys.modules, "optuna_dashboard", None)
    with pytest.raises(UserError, match="pip install optuna-dashboard"):
        dashboard.main([file, runs])
