"""python -m eltlab.dashboard NAME [preset=quick] [storage=URL]: optuna-dashboard on a study.

Takes the arguments that started the study with eltlab.sweep. Runs until Ctrl-C; the study may run meanwhile.

examples:
  python -m eltlab.dashboard loops_vs_depth preset=quick
"""

from dataclasses import dataclass

from eltlab.cli import study_keys
from eltlab.common.command import run_command
from eltlab.config.key_help import help_text, key_help
from eltlab.config.keys import key
from eltlab.studies.dashboard import serve
from eltlab.studies.study import load_study
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
    serve(study, keys.storage, keys.host, keys.port)


if __name__ == "__main__":
    run_command(main, usage, stopped="the study is as it was")
