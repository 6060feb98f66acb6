"""The verb dashboard: it takes the arguments of the sweep, serves its study, and reports mistakes."""

import socket
import sys

import pytest
from support.small_studies import GRID, filled, opened, written

from eltlab import dashboard
from eltlab.common.errors import UserError


def test_mistakes_are_reported_and_leave_nothing(tmp_path):
    file, runs = written(tmp_path, GRID), f"runs_dir={tmp_path / 'runs'}"
    with pytest.raises(UserError, match=r"small was not started in .*; start it with python -m eltlab.sweep"):
        dashboard.main([file, runs])
    with pytest.raises(UserError, match=r"port=70000: must be in \[0, 65535\]"):
        dashboard.main([file, runs, "port=70000"])
    with pytest.raises(UserError, match="give one study"):
        dashboard.main([runs])
    assert not (tmp_path / "runs").exists()


def test_a_port_that_is_taken_is_reported(tmp_path):
    """So the study is found, although only the keys of the sweep make its file valid."""
    filled(opened(tmp_path))
    file = tmp_path / "small.yaml"
    file.write_text(f"{file.read_text()}sampler: random\n")
    keys = ["workers=2", "seeds=[0,1]", "trials=3", "threads=1", "lease=9", "retry=true"]
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(UserError, match=f"port={port}: Address already in use; set a different port"):
            dashboard.main([str(file), f"runs_dir={tmp_path / 'runs'}", f"port={port}", *keys])


def test_a_missing_optuna_dashboard_is_reported(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "optuna_dashboard", None)
    with pytest.raises(UserError, match="pip install optuna-dashboard"):
        dashboard.main([written(tmp_path, GRID), f"runs_dir={tmp_path / 'runs'}"])


def test_the_study_and_the_address_are_passed_on(tmp_path, monkeypatch):
    served = []
    monkeypatch.setattr(dashboard, "serve", lambda *given: served.append(given))
    file, runs = written(tmp_path, GRID), tmp_path / "runs"
    dashboard.main([file, f"runs_dir={runs}", "batch_size=4"])
    dashboard.main([file, f"runs_dir={runs}", "host=0.0.0.0", "port=0", f"storage=sqlite:///{tmp_path}/a.db"])
    (changed, *default), (study, *rest) = served
    assert default == [None, "127.0.0.1", 8080]  # without a password, only this machine may read
    assert rest == [f"sqlite:///{tmp_path}/a.db", "0.0.0.0", 0]
    # An override makes another study, as it does for the sweep.
    assert study.folder == runs / "small"
    assert changed.name == opened(tmp_path, overrides=["batch_size=4"]).name != "small"


def test_help_names_its_keys():
    text = dashboard.usage([])
    assert text.startswith("python -m eltlab.dashboard NAME") and "0.0.0.0: reachable" in text
    assert "8080" in text and "storage" in text
