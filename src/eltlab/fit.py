"""python -m eltlab.fit [overrides]: trains one run, resumes it, and measures every loop count."""

from eltlab.cli import options
from eltlab.common.command import run_command
from eltlab.config.devices import needs_launch
from eltlab.config.flat import to_yaml
from eltlab.launch import launch
from eltlab.runs.composing import compose


def usage() -> str:
    keys = "\n".join(f"  {line}" for line in to_yaml(compose([])).splitlines())
    return (
        f"{__doc__}\n\nThe same command again resumes the run, or says that it is finished.\n\n"
        f"choices:\n{options()}\n\nkeys and their defaults (write section.key=value):\n{keys}\n\n"
        "examples:\n"
        "  python -m eltlab.fit\n"
        "  python -m eltlab.fit objective=diffusion loops=2 seed=1\n"
        "  python -m eltlab.fit model=elt_b loops=12\n"
        "  python -m eltlab.fit trainer=slurm trainer.devices=4      # a job (docs/cluster.md)"
    )


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
