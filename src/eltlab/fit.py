"""python -m eltlab.fit [overrides]: trains one run, resumes it, and measures every loop count.

The same command again resumes the run, or says that it is finished.

examples:
  python -m eltlab.fit
  python -m eltlab.fit objective=diffusion loops=2 seed=1
  python -m eltlab.fit model=elt_b loops=12
  python -m eltlab.fit trainer=slurm trainer.devices=4      # a job (docs/cluster.md)
"""

from eltlab.common.command import run_command
from eltlab.config.devices import needs_launch
from eltlab.config.key_help import config_help, help_text
from eltlab.launch import launch
from eltlab.runs.compose_config import compose


def usage(arguments: list[str]) -> str:
    return help_text(__doc__, config_help(arguments))


def main(overrides: list[str]) -> None:
    config = compose(overrides)
    if config.trainer.name == "slurm":
        from eltlab.cluster import submit_fit

        submit_fit(config)
    elif needs_launch(config):
        launch("fit", overrides, config.trainer.devices)
    else:
        from eltlab.training.fit import fit

        fit(config)


if __name__ == "__main__":
    run_command(main, usage)
