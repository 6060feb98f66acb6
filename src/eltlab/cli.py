"""What the verbs share: `--help` without torch, mistakes in one line, no traceback for them."""

import os
import sys
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import TypeVar

from omegaconf import OmegaConf

from eltlab import devices
from eltlab.compose import groups_of, options_of, parse_overrides, set_key, typed
from eltlab.config import Config, flatten, folder
from eltlab.errors import UserError, nearest
from eltlab.rules import resolve
from eltlab.runs import Run
from eltlab.signals import Stopped
from eltlab.text import one_line, shown

Asked = TypeVar("Asked")

# What may differ between a run and a later look at it.
OPEN_KEYS = (
    *("sampler.", "metrics.", "trainer.accelerator", "trainer.devices", "trainer.nodes"),
    *("data.root", "data.workers", "data.in_memory"),  # where the same images lie today
)


# The variable of the environment that says what storage= says, which anyone on the machine could read.
STORAGE = "ELTLAB_STORAGE"

GOES_ON = "the same command goes on from the last checkpoint"


def run_verb(
    main: Callable[[list[str]], None], usage: Callable[[], str], stopped: str = GOES_ON
) -> None:
    """Runs main(overrides) on the command line and exits: 0, 2 for a user's mistake, 130 for Ctrl-C,
    143 and 140 for a fit that SIGTERM and SIGUSR2 stopped.

    stopped: what a user who stops it should know.
    """
    arguments = sys.argv[1:]
    if "-h" in arguments or "--help" in arguments:
        print(usage())
        return
    try:
        for argument in arguments:
            if argument in ("-m", "--multirun"):
                raise UserError(
                    f"{argument}: a run is one configuration; for studies over many: python -m eltlab.sweep"
                )
            if argument.startswith("-"):
                raise UserError(f"{shown(argument)}: only key=value and --help are understood")
        with devices.only_the_first_speaks():
            main(arguments)
    except UserError as error:
        devices.let_others_speak(error)
        print(f"error: {one_line(str(error))}", file=sys.stderr)
        sys.exit(error.code)
    except BrokenPipeError:  # whoever read our output has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    except OSError as error:
        devices.let_others_speak(error)
        what = f"{error.filename}: {error.strerror}" if error.filename else str(error)
        print(f"error: {one_line(what)}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        if devices.first():
            print(f"stopped; {stopped}", file=sys.stderr)
        sys.exit(130)
    except Stopped as stop:
        if devices.first():
            print(f"{stop}; {stopped}", file=sys.stderr)
        sys.exit(stop.code)
    except Exception as error:
        devices.let_others_speak(error)
        raise


def options(root: str = "config") -> str:
    """The choices of every group of a root in conf/, a line a group."""
    return "\n".join(
        f"  {group}={{{', '.join(options_of(folder('conf') / group))}}}"
        for group in sorted(groups_of(root))
    )


def own_keys(overrides: list[str], defaults: Asked) -> tuple[Asked, list[str]]:
    """A verb's own keys (a dataclass instance of them) taken out of overrides, and fit's that are left."""
    own = OmegaConf.structured(defaults)
    mine = [text for text in overrides if text.partition("=")[0] in own]
    urls = [text for text in mine if text.startswith("storage=")]
    for text in urls:  # which Hydra's grammar would take apart, and quote in its errors
        set_key(own, "storage", url_of(text.removeprefix("storage=")))
    for key, value in parse_overrides([text for text in mine if text not in urls]):
        set_key(own, key, value)
    asked = OmegaConf.to_object(own)
    return asked, [text for text in overrides if text not in mine]  # type: ignore[return-value]


def url_of(text: str | None) -> str | None:
    """The value of storage=, and of STORAGE in the environment."""
    return None if text in ("", "null") else text


def study_keys(arguments: list[str], defaults: Asked) -> tuple[str, Asked, list[str]]:
    """The study that stands before the keys, a verb's own keys, and fit's overrides that are left."""
    names = [text for text in arguments if not sets_a_key(text)]
    if len(names) != 1:
        given = " and ".join(map(shown, names)) or "none"
        raise UserError(f"give one study, e.g. loops_vs_depth preset=quick; here {given}")
    return names[0], *own_keys([text for text in arguments if sets_a_key(text)], defaults)


def sets_a_key(text: str) -> bool:
    """Whether an argument is KEY=VALUE; a path may have an = too."""
    key, equals, _ = text.partition("=")
    return bool(equals) and "/" not in key


def open_run(overrides: list[str], defaults: Asked) -> tuple[Run, Config, Asked]:
    """The run named by run=DIR, its configuration under the overrides, and the verb's own keys.

    defaults is a dataclass instance of the verb's keys, `run: str | None` among them.
    """
    parsed = parse_overrides(overrides)
    folder = dict(parsed).get("run")
    if not folder:
        raise UserError("run=DIR is missing: the folder that fit printed after 'run:'")
    run = Run.open(Path(str(folder)).expanduser())
    node = typed(OmegaConf.create(asdict(run.config)))
    # How many devices it was trained on is no reason to measure it on as many.
    node.trainer.devices = node.trainer.nodes = node.trainer.accumulate = 1
    own = OmegaConf.structured(defaults)
    for key, value in parsed:
        if key in own:
            set_key(own, key, value)
        elif key.startswith(OPEN_KEYS):
            set_key(node, key, value)
        else:
            known = [*own, *(k for k in flatten(run.config) if k.startswith(OPEN_KEYS))]
            raise UserError(
                f"{key}={value}: not a key of a trained run: {nearest(key, known, 'keys')}"
            )
    asked = OmegaConf.to_object(own)
    return run, resolve(node), asked  # type: ignore[return-value]
