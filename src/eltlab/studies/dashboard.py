"""Serves optuna-dashboard for a study."""

from socketserver import ThreadingMixIn
from typing import Any
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer, make_server

from eltlab.common.errors import UserError
from eltlab.studies.study import Study


def application(study: Study, url: str | None) -> tuple[Any, str]:
    """The dashboard of a study that was begun, and where its trials are. Raises UserError."""
    try:
        from optuna_dashboard import wsgi
    except ImportError as error:
        raise UserError(
            "the dashboard needs optuna-dashboard; pip install optuna-dashboard"
        ) from error
    from optuna import get_all_study_names

    from eltlab.studies.storage import open_storage

    none = UserError(
        f"{study.name} was not begun in {url or study.folder}; begin it by python -m eltlab.sweep, with "
        "the same preset, storage, runs_dir and overrides"
    )
    if url is None and not (study.folder / "journal.log").is_file():
        raise none
    storage = open_storage(url, study.folder)
    if study.name not in get_all_study_names(storage.optuna):
        raise none
    return wsgi(storage.optuna), storage.where


class Quiet(WSGIRequestHandler):
    """Logs no requests."""

    def log_message(self, format: str, *args: Any) -> None:
        pass


class Server(ThreadingMixIn, WSGIServer):
    daemon_threads = True


def served(page: Any, host: str, port: int) -> WSGIServer:
    """A server that listens. Raises UserError where it cannot."""
    try:
        return make_server(host, port, page, server_class=Server, handler_class=Quiet)
    except OSError as error:
        raise UserError(
            f"host={host} port={port}: {error.strerror}; take another port, or port=0 for any"
        ) from error
