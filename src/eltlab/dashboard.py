"""python -m eltlab.dashboard NAME [preset=quick] [storage=URL]: optuna-dashboard on a study."""

import sys
from dataclasses import dataclass

from eltlab.cli import study_keys
from eltlab.common.command import run_command
from eltlab.common.errors import UserError
from eltlab.studies.dashboard import application, make_dashboard_server
from eltlab.studies.study import load_study
from eltlab.studies.sweep_keys import SweepKeys


@dataclass
class Asked(SweepKeys):
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
    study = load_study(name, asked.preset, overrides, asked.runs_dir, asked.changes())
    page, where = application(study, asked.storage)
    with make_dashboard_server(page, asked.host, asked.port) as server:
        print(f"dashboard: http://{asked.host}:{server.server_port}/", flush=True)
        print(f"{study.name} in {where}; Ctrl-C ends it", file=sys.stderr, flush=True)
        server.serve_forever()


if __name__ == "__main__":
    run_command(main, usage, stopped="the study is as it was")
