"""Forks instead of `python -m MODULE`, for the libraries that start processes of ours."""

import logging.config
import os
import sys
from collections.abc import Mapping, Sequence
from typing import IO

from support.commands import Command, fork, run_module


def forked_popen(
    command: Sequence[str],
    env: Mapping[str, str],
    stdout: IO | None = None,
    stderr: IO | None = None,
    start_new_session: bool = False,
    **_: object,
) -> Command:
    """Replaces subprocess.Popen for [python, "-m", MODULE, *ARGUMENTS]."""
    module, *arguments = command[list(command).index("-m") + 1 :]

    def work() -> None:
        os.environ.clear()
        os.environ.update(env)
        if loggers := sys.modules.get("submitit.core.logger"):  # they write to pytest's streams so far
            logging.config.dictConfig(loggers.CONFIG)
        run_module(module, arguments)

    streams = {1: stdout, 2: stderr}
    outputs = {number: stream for number, stream in streams.items() if stream is not None}
    return Command(fork(work, outputs, start_new_session), stdout, stderr)
