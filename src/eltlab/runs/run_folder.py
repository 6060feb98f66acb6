"""A run and its folder, runs/<name>/<identity>: configuration, checkpoint, rows and lock."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

from omegaconf import OmegaConf

from eltlab.common.errors import UserError
from eltlab.common.files import file_lock, write_atomic
from eltlab.common.package_info import describe_code
from eltlab.config.identity import identity
from eltlab.config.keys import to_yaml
from eltlab.config.rules import short_name
from eltlab.config.schema import Config
from eltlab.runs.checkpoints import read_checkpoint
from eltlab.runs.compose_config import load_config
from eltlab.runs.old_runs import is_old, refuse_resume
from eltlab.runs.row_files import ROWS, read_rows


@dataclass(frozen=True)
class Run:
    folder: Path
    config: Config

    @classmethod
    def of(cls, config: Config) -> "Run":
        """The run of this configuration, in its folder under runs_dir; nothing is written."""
        assert config.name is not None
        return cls(Path(config.runs_dir).expanduser() / config.name / identity(config), config)

    @classmethod
    def open(cls, folder: Path) -> "Run":
        """The run in an existing folder. Raises UserError if it is not a run."""
        if not (folder / "config.yaml").is_file():
            raise UserError(
                f"run={folder}: no config.yaml there; give the folder that fit printed after 'run:'"
            )
        return cls(folder, load_config(folder / "config.yaml"))

    @cached_property
    def id(self) -> str:
        """NAME/ID, by which rows name the run, also if its folder has moved."""
        if not is_old(OmegaConf.load(self.folder / "config.yaml")):
            return f"{self.config.name}/{identity(self.config)}"
        # Its keys were translated, which changes their hash, but an old run keeps its id.
        rows = read_rows(self.rows)
        return str(rows[0]["run"]) if rows else f"{self.config.name}/{self.folder.name}"

    def refuse_old_start(self) -> None:
        """Raises UserError if an old version started this run and did not finish it: it cannot continue."""
        new, folders = self.config, {self.folder.parent}
        if str(new.name).startswith(short_name(new)):  # a default name, to which old versions added nothing
            folders.add(Path(new.runs_dir).expanduser() / short_name(new))
        for path in (path for folder in sorted(folders) for path in folder.glob("*/config.yaml")):
            try:
                old = Run.open(path.parent)
            except UserError:  # nothing that this version can read, so not this run
                continue
            if not is_old(OmegaConf.load(path)):
                continue
            same = replace(
                old.config,
                model=replace(old.config.model, final_norm=new.model.final_norm),
                optim=replace(old.config.optim, warmup=new.optim.warmup),
                ema=new.ema,
            )
            if identity(same) == self.folder.name and old.checkpoint.is_file():
                checkpoint = read_checkpoint(old.checkpoint)
                if checkpoint["eltlab"]["step"] < old.config.steps:
                    refuse_resume(checkpoint, old.checkpoint)

    @property
    def checkpoint(self) -> Path:
        return self.folder / "checkpoints" / "last.ckpt"

    @property
    def rows(self) -> Path:
        return self.folder / ROWS

    def write_config(self) -> None:
        # A comment: the code is no key of the configuration, which is the same under any code.
        write_atomic(self.folder / "config.yaml", f"# {describe_code()}\n{to_yaml(self.config)}")

    @contextmanager
    def lock(self, wait: bool = False) -> Iterator[None]:
        """Locks the run. If another process is training it, waits for the process or raises UserError."""
        with file_lock(self.folder / ".lock", wait) as acquired:
            if not acquired:
                raise UserError(f"run {self.folder}: another process is training it; wait for it")
            yield
