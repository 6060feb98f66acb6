"""Storages in this process: connections, locks that are lost, and URLs that are refused."""

import errno
import fcntl
import sqlite3
import sys
import threading

import pytest
from sqlalchemy import create_engine
from support.postgres import PASSWORD, QUOTED, USER
from support.storages import Place, content, joined, run_trials, told
from support.waiting import until

from eltlab.common.errors import UserError
from eltlab.studies import storage
from eltlab.studies.storage import find_storage, open_storage

OTHERS = """from pg_stat_activity
    where datname = current_database() and backend_type = 'client backend'
    and pid <> pg_backend_pid()"""


@pytest.mark.integration
def test_a_worker_needs_few_connections(postgres, tmp_path):
    import psycopg

    url = postgres()
    storage = Place(url, tmp_path).open()
    study = joined(storage)
    with psycopg.connect(url, autocommit=True) as connection:

        def come_to(expected):
            # Closed connections take a moment to disappear.
            count = f"select count(*) {OTHERS}"
            until(lambda: connection.execute(count).fetchone()[0] == expected)

        threads = [threading.Thread(target=run_trials, args=(study, 2)) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(study.trials) == 8
        come_to(1)
        with storage.exclusive():
            come_to(2)
        storage.close()
        come_to(0)


@pytest.mark.integration
def test_a_worker_outlives_the_connections_that_the_server_ends(postgres, tmp_path):
    import psycopg

    url = postgres()
    study = Place(url, tmp_path).study()
    run_trials(study, 1)
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute(f"select pg_terminate_backend(pid, 10000) {OTHERS}")
    run_trials(study, 1, "after")
    assert told(study) == [["after", 0], ["here", 0]]


def test_a_bad_line_inside_a_journal_is_named(storage_journal):
    run_trials(storage_journal.study(), 1)
    lines = content(storage_journal).splitlines(keepends=True)
    damaged = [*lines[:2], b"{\xff\n", *lines[2:]]
    (storage_journal.folder / "journal.log").write_bytes(b"".join(damaged))
    with pytest.raises(UserError, match=r"journal\.log: line 3 is") as caught:
        storage_journal.open()
    assert "\n" not in str(caught.value)
    assert content(storage_journal) == b"".join(damaged)  # nothing that may be a record is cut


def test_a_file_system_without_locks_is_reported(storage_journal, monkeypatch):
    def refuse(*_):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", refuse)
    with pytest.raises(UserError, match="no file locks"):
        storage_journal.open()


@pytest.mark.integration
def test_a_lock_that_the_server_took_back_is_an_error(postgres, tmp_path):
    import psycopg

    url = postgres()
    storage = Place(url, tmp_path).open()
    end = "select pg_terminate_backend(pid) from pg_locks where locktype = 'advisory'"
    with (
        pytest.raises(UserError, match="lock was lost") as caught,
        storage.exclusive(),
        psycopg.connect(url) as connection,
    ):
        connection.execute(end)
    assert_one_line(caught.value)
    with storage.exclusive():
        pass


def assert_one_line(error):
    message = str(error)
    assert "\n" not in message
    assert PASSWORD not in message and QUOTED not in message and "s3cret" not in message
    assert message.startswith("storage=")


def refused(url, folder, workers=1):
    with pytest.raises(UserError) as caught:
        open_storage(url, folder, workers)
    assert_one_line(caught.value)
    assert (
        caught.value.__suppress_context__
        or caught.value.__cause__ is None
        or ("s3cret" not in repr(caught.value.__cause__))
    )
    return str(caught.value)


def test_sqlite_is_for_one_worker(tmp_path):
    url = f"sqlite:///{tmp_path}/new/study.db"
    message = refused(url, tmp_path, workers=2)
    assert "workers=2" in message and "workers=1" in message and "postgresql://" in message
    assert not (tmp_path / "new").exists()
    place = Place(url, tmp_path)
    run_trials(place.study(), 2)
    assert told(place.study()) == [["here", 0], ["here", 1]]


@pytest.mark.parametrize(
    ("url", "part"),
    [
        ("mysql://u:s3cret@host/db", "an unknown kind"),
        ("postgresql+psycopg2://u:s3cret@host/db", "an unknown kind"),
        ("postgres://u:s3cret@host/db", "an unknown kind"),
        ("journal.log", "an unknown kind"),
        ("postgresql:u:s3cret@host", "an unknown kind"),
        ("host=h user=u password=s3cret", "an unknown kind"),
        ("sqlite://", "names no file"),
        ("sqlite:///:memory:", "names no file"),
        ("sqlite:///", "names no file"),
        ("sqlite:////proc/version/study.db", "proc"),
        ("postgresql://u:pw@s3cret@host:1/db", "%40"),
        ("postgresql://u:pw@s3cret:x@host:1/db", "%40"),
        ("postgresql://u:s3cret@host:port/db", "cannot be read"),
        ("postgresql://u:s3cret@host.invalid/db", "host.invalid"),
        ("postgresql://u@host.invalid/db?password=s3cret", "host.invalid"),
    ],
)
def test_bad_urls_are_one_line_without_the_password(url, part, tmp_path):
    pytest.importorskip("psycopg")
    assert part in refused(url, tmp_path)


@pytest.mark.parametrize(
    "kind", ["journal", "sqlite", pytest.param("postgres", marks=pytest.mark.integration)]
)
def test_a_storage_is_found_without_creating_it(kind, tmp_path, request):
    url = request.getfixturevalue("postgres")() if kind == "postgres" else None
    url = f"sqlite:///{tmp_path / 'new' / 'study.db'}" if kind == "sqlite" else url
    place = Place(url, tmp_path / "folder")
    assert find_storage(url, place.folder, "s") is None and not list(tmp_path.iterdir())
    place.study()
    assert find_storage(url, place.folder, "another") is None
    found = find_storage(url, place.folder, "s")
    assert found is not None and found.optuna.get_all_studies()[0].study_name == "s"


def test_no_tables_are_created_in_a_database_that_has_none(tmp_path):
    file = tmp_path / "study.db"
    with sqlite3.connect(file) as connection:
        connection.execute("create table mine (x)")
    before = file.read_bytes()
    assert find_storage(f"sqlite:///{file}", tmp_path, "s") is None and file.read_bytes() == before
    with pytest.raises(UserError, match="names no file"):
        find_storage("sqlite:///:memory:", tmp_path, "s")


def test_finding_waits_for_a_server_no_longer_than_opening(tmp_path, monkeypatch):
    pytest.importorskip("psycopg")
    made = []

    def create(target, **options):
        made.append(options["connect_args"])
        return create_engine(target, **options)

    monkeypatch.setattr(storage, "create_engine", create)
    for call in (find_storage, open_storage):
        for query in ("", "?connect_timeout=3"):
            with pytest.raises(UserError):
                call(f"postgresql://{USER}@127.0.0.1:1/db{query}", tmp_path, study="s")
    without = {key: value for key, value in storage.CONNECTION.items() if key != "connect_timeout"}
    assert made == [storage.CONNECTION, without] * 2


def test_a_server_that_is_not_there(tmp_path):
    pytest.importorskip("psycopg")
    message = refused(f"postgresql://{USER}:{QUOTED}@127.0.0.1:1/db", tmp_path)
    assert "refused" in message and "127.0.0.1:1" in message and "check that the server" in message


@pytest.mark.integration
@pytest.mark.parametrize(
    ("old", "new", "part"),
    [
        (QUOTED, "s3cret-not", "password authentication failed"),
        (QUOTED, "", "password"),
        ("/sweeps", "/nothing", "does not exist"),
        (USER, "somebody", "somebody"),
    ],
)
def test_a_server_that_refuses(old, new, part, postgres, tmp_path):
    assert part in refused(postgres().replace(old, new), tmp_path)


@pytest.mark.integration
def test_the_url_may_name_the_driver(postgres, tmp_path):
    url = postgres()
    run_trials(Place(url, tmp_path).study(), 1)
    spelled = url.replace("postgresql://", "postgresql+psycopg://")
    storage = Place(spelled + "?connect_timeout=5", tmp_path).open()
    assert told(joined(storage)) == [["here", 0]]
    assert PASSWORD not in repr(storage) and QUOTED not in repr(storage)
    assert storage.where.startswith(f"postgresql+psycopg://{USER}:***@127.0.0.1:")


@pytest.mark.integration
def test_tables_of_another_optuna_are_refused(postgres, tmp_path):
    import psycopg

    url = postgres()
    Place(url, tmp_path).open()
    with psycopg.connect(url) as connection:
        connection.execute("update alembic_version set version_num = 'v9.9.9'")
    message = refused(url, tmp_path)
    assert "no longer compatible" in message and "check that the server" not in message


def test_a_missing_driver_says_how_to_get_it(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "psycopg", None)
    message = refused("postgresql://u:s3cret@host/db", tmp_path)
    assert 'pip install "psycopg[binary]"' in message
