"""python -m eltlab.dashboard NAME [preset=quick] [storage=URL]: optuna-dashboard on a study.

Takes the arguments that started the study with eltlab.sweep. Runs until Ctrl-C; the study may run meanwhile.

examples:
  python -m eltlab.dashboard loops_vs_depth preset=quick
"""

import sys
from dataclasses import dataclass

from eltlab.cli import study_keys
from eltlab.common.command import run_command
from eltlab.config.key_help import help_text, key_help
from eltlab.config.keys import key
from eltlab.studies.dashboard import application, make_dashboard_server
from eltlab.studies.study import load_study
from eltlab.studies.sweep_keys import SweepKeys


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
    with make_dashboard_server(page, keys.host, keys.port) as server:
        print(f"dashboard: http://{keys.host}:{server.server_port}/", flush=True)
        print(f"{study.name} in {where}; Ctrl-C ends it", file=sys.stderr, flush=True)
        server.serve_forever()


if __name__ == "__main__":
    run_command(main, usage, stopped="the study is as it was")
