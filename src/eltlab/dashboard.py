"""python -m eltlab.dashboard NAME [preset=quick] [storage=URL]: optuna-dashboard on a study.

Takes the arguments that started the study with eltlab.sweep. Runs until Ctrl-C; the study may run meanwhile.

examples:
  python -m eltlab.dashboard loops_vs_depth preset=quick
"""

import sys
from dataclasses import dataclass
from socketserver import ThreadingMixIn
from typing import Any
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer, make_server

from eltlab.cli import study_keys
from eltlab.common.command import run_command
from eltlab.common.errors import UserError
from eltlab.config.key_help import help_text, key_help
from eltlab.config.keys import key
from eltlab.studies.study import Study, load_study
from eltlab.studies.study_file import SweepKeys


@dataclass
class Keys(SweepKeys):
    host: str = key("127.0.0.1", "0.0.0.0: reachable from other machines, without a password")
    port: int = key(8080, "0: any free port", low=0, high=65535)


def usage(arguments: list[str]) -> str:
    return help_text(__doc__, key_help(Keys()))


def main(arguments: list[str]) -> None:
    name, keys, overrides = study_keys(arguments, Keys())
    study = load_study(name, keys.preset, overrides, keys.runs_dir, keys.changes())
    page, where = application(study, keys.storage)
    try:
        server = make_server(keys.host, keys.port, page, server_class=Server, handler_class=QuietHandler)
    except OSError as error:
        raise UserError(
            f"host={keys.host} port={keys.port}: {error.strerror}; set a different port, or port=0 for any "
            "free port"
        ) from error
    with server:
        print(f"dashboard: http://{keys.host}:{server.server_port}/", flush=True)
        print(f"{study.name} in {where}; Ctrl-C ends it", file=sys.stderr, flush=True)
        server.serve_forever()


def application(study: Study, url: str | None) -> tuple[Any, str]:
    """The dashboard of a study, and where its trials are stored. Raises UserError."""
    try:
        from optuna_dashboard import wsgi
    except ImportError as error:
        raise UserError("the dashboard requires optuna-dashboard; pip install optuna-dashboard") from error
    from optuna import get_all_study_names

    from eltlab.studies.storage import open_storage

    not_started = UserError(
        f"{study.name} was not started in {url or study.folder}; start it by python -m eltlab.sweep, "
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


if __name__ == "__main__":
    run_command(main, usage, stopped="the study is as it was")
