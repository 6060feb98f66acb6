"""optuna-dashboard on a study, in a real browser."""

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from support.commands import start
from support.small_studies import GRID, opened, written
from support.waiting import until

from eltlab.studies.storage import open_storage
from eltlab.studies.study import grid_trials
from eltlab.studies.trial_queue import TrialQueue


def finish_trials(tmp_path: Path, url: str | None) -> None:
    """Starts a study and finishes its trials without training."""
    study = opened(tmp_path)
    storage = open_storage(url, study.folder, study=study.name)
    queue = TrialQueue(study, storage, "me", 60.0)
    queue.fill(grid_trials(study))
    while (claimed := queue.claim()) is not None:
        queue.finish(claimed, [10.0 + claimed.number])
    storage.close()


@contextmanager
def serving(tmp_path: Path, url: str | None) -> Iterator[str]:
    """Runs the verb in its own process; yields its address."""
    more = [f"storage={url}"] if url else []
    command = start("dashboard", written(tmp_path, GRID), "port=0", f"runs_dir={tmp_path / 'runs'}", *more)
    try:
        until(lambda: command.output()[1] or command.poll() is not None)
        out, err = command.output()
        assert out.startswith("dashboard: http://127.0.0.1:"), err
        yield out.removeprefix("dashboard: ").strip()
    finally:
        command.send_signal(signal.SIGINT)
        _, err = command.communicate()
    assert command.returncode == 130
    assert [text[:9] for text in err.splitlines()] == ["small in ", "stopped; "], err


@pytest.mark.parametrize(
    "kind",
    [
        pytest.param("journal", marks=pytest.mark.integration),
        pytest.param("postgres", marks=pytest.mark.slow),
    ],
)
def test_a_study_is_shown(kind: str, tmp_path: Path, page: Any, request: pytest.FixtureRequest) -> None:
    url = request.getfixturevalue("postgres")() if kind == "postgres" else None
    finish_trials(tmp_path, url)
    with serving(tmp_path, url) as address:
        page.goto(address)
        page.get_by_text("small").first.click()
        page.get_by_text("Best Trial (number=0)").wait_for()
        # The values of a grid are stored as parameters, so that there is something to plot.
        assert "supervision" in page.get_by_text("Params = [").inner_text()
        page.get_by_text("Study User Attributes").wait_for()
        page.get_by_text("heldout_loss").first.wait_for()  # the axis is named after the metric
    # Plotly warns if a figure is redrawn often, as on a busy machine.
    assert not [message for message in page.said if "auto-margin redraws" not in message]
    assert all(url.startswith(address) for url in page.requested)
