"""Runs a command: exit codes, one-line errors, signals. Shared by the verbs and analysis."""

import os
import sys
from collections.abc import Callable

from eltlab.common import ranks
from eltlab.common.errors import UserError
from eltlab.common.signals import Stopped
from eltlab.common.text import mask_password, one_line

RESUMES = "the same command goes on from the last checkpoint"


def run_command(
    main: Callable[[list[str]], None], usage: Callable[[], str], stopped: str = RESUMES
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
                raise UserError(
                    f"{mask_password(argument)}: only key=value and --help are understood"
                )
        with ranks.silence_other_ranks():
            main(arguments)
    except UserError as error:
        ranks.wait_for_other_errors(error)
        print(f"error: {one_line(str(error))}", file=sys.stderr)
        sys.exit(error.code)
    except BrokenPipeError:  # whoever read our output has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    except OSError as error:
        ranks.wait_for_other_errors(error)
        what = f"{error.filename}: {error.strerror}" if error.filename else str(error)
        print(f"error: {one_line(what)}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        if ranks.is_main_process():
            print(f"stopped; {stopped}", file=sys.stderr)
        sys.exit(130)
    except Stopped as stop:
        if ranks.is_main_process():
            print(f"{stop}; {stopped}", file=sys.stderr)
        sys.exit(stop.code)
    except Exception as error:
        ranks.wait_for_other_errors(error)
        raise


def is_key_value(text: str) -> bool:
    """Whether an argument is KEY=VALUE; a path may have an = too."""
    key, equals, _ = text.partition("=")
    return bool(equals) and "/" not in key
