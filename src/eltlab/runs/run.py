"""The run folder: runs/<name>/<identity>, its configuration, checkpoint and lock (DESIGN decision 3)."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from eltlab.common.atomic_files import write_atomic
from eltlab.common.errors import UserError
from eltlab.common.file_locks import file_lock
from eltlab.config.flat import to_yaml
from eltlab.config.identity import identity
from eltlab.config.schema import Config
from eltlab.runs.composing import load_config
from eltlab.runs.row_files import ROWS


@dataclass(frozen=True)
class Run:
    folder: Path
    config: Config

    @classmethod
    def of(cls, config: Config) -> "Run":
        """The run that this configuration is; nothing is written."""
        assert config.name is not None
        return cls(Path(config.runs_dir).expanduser() / config.name / identity(config), config)

    @classmethod
    def open(cls, folder: Path) -> "Run":
        """An existing run. Raises UserError where the folder is not one."""
        if not (folder / "config.yaml").is_file():
            raise UserError(
                f"run={folder}: no config.yaml there; give the folder that fit printed after 'run:'"
            )
        return cls(folder, load_config(folder / "config.yaml"))

    @property
    def checkpoint(self) -> Path:
        return self.folder / "checkpoints" / "last.ckpt"

    @property
    def rows(self) -> Path:
        return self.folder / ROWS

    def write_config(self) -> None:
        write_atomic(self.folder / "config.yaml", to_yaml(self.config))

    @contextmanager
    def alone(self, wait: bool = False) -> Iterator[None]:
        """Holds the run. Where another process trains it at this moment: waits for that, or UserError."""
        with file_lock(self.folder / ".lock", wait) as mine:
            if not mine:
                raise UserError(f"run {self.folder}: another process is training it; wait for it")
            yield
