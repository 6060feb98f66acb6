"""python -m eltlab.dashboard NAME [preset=quick] [storage=URL]: optuna-dashboard on a study."""

import sys
from dataclasses import dataclass
from socketserver import ThreadingMixIn
from typing import Any
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer, make_server

from eltlab import sweep
from eltlab.cli import run_verb, study_keys
from eltlab.errors import UserError
from eltlab.study import Study, load_study


@dataclass
class Asked(sweep.Asked):
    host: str = "127.0.0.1"
    port: int = 8080


def usage() -> str:
    return (
        f"{__doc__}\n\n"
        "Takes what eltlab.sweep took to begin the study. Runs until Ctrl-C; the study may go on.\n\n"
        "  preset=quick      as for eltlab.sweep; so are all its keys, and fit's overrides\n"
        "  port=8080         0: any that is free\n"
        "  host=127.0.0.1    0.0.0.0: from other machines too, without a password\n\n"
        "example:\n"
        "  python -m eltlab.dashboard loops_vs_depth preset=quick"
    )


def main(arguments: list[str]) -> None:
    name, asked, overrides = study_keys(arguments, Asked())
    if not 0 <= asked.port < 65536:
        raise UserError(f"port={asked.port}: must be from 0 to 65535")
    study = load_study(name, asked.preset, overrides, asked.runs_dir, sweep.changes(asked))
    page, where = application(study, asked.storage)
    with served(page, asked.host, asked.port) as server:
        print(f"dashboard: http://{asked.host}:{server.server_port}/", flush=True)
        print(f"{study.name} in {where}; Ctrl-C ends it", file=sys.stderr, flush=True)
        server.serve_forever()


def application(study: Study, url: str | None) -> tuple[Any, str]:
    """The dashboard of a study that was begun, and where its trials are. Raises UserError."""
    try:
        from optuna_dashboard import wsgi
    except ImportError as error:
        raise UserError(
            "the dashboard needs optuna-dashboard; pip install optuna-dashboard"
        ) from error
    from optuna import get_all_study_names

    from eltlab.storage import open_storage

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


if __name__ == "__main__":
    run_verb(main, usage, stopped="the study is as it was")
