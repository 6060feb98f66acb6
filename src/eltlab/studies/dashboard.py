"""Serves optuna-dashboard for a study."""

import sys
from socketserver import ThreadingMixIn
from typing import Any
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer, make_server

from eltlab.common.errors import UserError
from eltlab.studies.study import Study


def serve(study: Study, url: str | None, host: str, port: int) -> None:
    """Serves until Ctrl-C and prints the address. Raises UserError if it cannot."""
    page, where = application(study, url)
    try:
        server = make_server(host, port, page, server_class=Server, handler_class=QuietHandler)
    except OSError as error:
        raise UserError(
            f"host={host} port={port}: {error.strerror}; set a different port, or port=0 for any free port"
        ) from error
    with server:
        print(f"dashboard: http://{host}:{server.server_port}/", flush=True)
        print(f"{study.name} in {where}; Ctrl-C ends it", file=sys.stderr, flush=True)
        server.serve_forever()


def application(study: Study, url: str | None) -> tuple[Any, str]:
    """The dashboard of a study as a WSGI application, and where its trials are stored. Raises UserError."""
    try:
        from optuna_dashboard import wsgi
    except ImportError as error:
        raise UserError("the dashboard requires optuna-dashboard; pip install optuna-dashboard") from error
    from optuna import get_all_study_names

    from eltlab.studies.storage import open_storage

    not_started = UserError(
        f"{study.name} was not started in {url or study.folder}; start it with python -m eltlab.sweep, "
        "with the same preset, storage, runs_dir and overrides"
    )
    if url is None and not (study.folder / "journal.log").is_file():
        raise not_started
    storage = open_storage(url, study.folder)
    if study.name not in get_all_study_names(storage.optuna):
        raise not_started
    return wsgi(storage.optuna), storage.where


class QuietHandler(WSGIRequestHandler):
    """Logs no requests."""

    def log_message(self, format: str, *args: Any) -> None:
        pass


class Server(ThreadingMixIn, WSGIServer):
    daemon_threads = True
