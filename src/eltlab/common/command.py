"""Runs a verb: exit codes, one-line errors, signals. Shared by the verbs and analysis."""

import os
import sys
from collections.abc import Callable
from contextlib import suppress

from eltlab.common import ranks
from eltlab.common.errors import UserError
from eltlab.common.signals import Stopped
from eltlab.common.text import mask_password, one_line

RESUMES = "the same command resumes from the last checkpoint"


def run_command(
    main: Callable[[list[str]], None], usage: Callable[[list[str]], str], stopped: str = RESUMES
) -> None:
    """Runs main(arguments) on the command line and exits.

    Exit codes: 0, 1 for an unexpected error or a diverged run, 2 for invalid input, 130 for Ctrl-C, 143 and
    140 for SIGTERM and SIGUSR2.
    usage: the text of --help, given the other arguments.
    stopped: what to tell a user who stops the command.
    """
    arguments = [text for text in sys.argv[1:] if text not in ("-h", "--help")]
    try:
        if len(arguments) < len(sys.argv) - 1:  # --help was among them
            print(usage(arguments))
            return
        for argument in arguments:
            if argument in ("-m", "--multirun"):
                raise UserError(
                    f"{argument}: a run is one configuration; use python -m eltlab.sweep for several"
                )
            if argument.startswith("-"):
                raise UserError(f"{mask_password(argument)}: only key=value and --help are understood")
        with ranks.silence_other_ranks():
            main(arguments)
    except UserError as error:
        _exit_with(error, str(error), error.code)
    except BrokenPipeError:  # the reader of our output has closed it, as `head` does
        # Python flushes stdout at exit and would report the closed pipe again.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    except OSError as error:
        text = f"{error.filename}: {error.strerror}" if error.filename else str(error)
        _exit_with(error, text, 2)
    except (KeyboardInterrupt, Stopped) as stop:
        text, code = (str(stop), stop.code) if isinstance(stop, Stopped) else ("stopped", 130)
        if ranks.is_main_process():
            with suppress(OSError):  # after SIGHUP the terminal is gone, and printing fails (EIO)
                print(f"{text}; {stopped}", file=sys.stderr)
        sys.exit(code)
    except Exception as error:
        ranks.wait_for_other_errors(error)
        raise


def _exit_with(error: Exception, text: str, code: int) -> None:
    ranks.wait_for_other_errors(error)
    print(f"error: {one_line(text)}", file=sys.stderr)
    sys.exit(code)


def is_key_value(text: str) -> bool:
    """Whether an argument is KEY=VALUE and not a path, which may also contain "="."""
    key, equals, _ = text.partition("=")
    return bool(equals) and "/" not in key
