"""A study: what sweeps/NAME.yaml says, checked, and the configurations of its trials."""

import re
from collections.abc import Iterator
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from eltlab.compose import compose_parsed, parse_overrides
from eltlab.compute import budget_flops
from eltlab.config import Config, flatten, folder, identity
from eltlab.errors import UserError, first_line, nearest
from eltlab.files import digest
from eltlab.results import read_rows
from eltlab.runs import Run
from eltlab.space import LABEL, Cell, check_space, grid, holds, keys_of
from eltlab.twins import twin

SAMPLERS = ("grid", "random", "tpe", "nsga2")
PRUNERS = ("none", "median", "hyperband")
MATCHED = ("train_flops", "images")
DIRECTIONS = ("minimize", "maximize")


@dataclass
class StudyFile:
    """The keys of a study file."""

    base: list[str] = field(default_factory=list)  # overrides of fit that all trials share
    space: Any = field(default_factory=dict)  # space.py
    where: list[str] = field(default_factory=list)  # constraints on cells
    seeds: list[int] = field(default_factory=lambda: [0, 1, 2])
    objectives: dict[str, str] = field(default_factory=dict)  # metrics and directions
    sampler: str = "grid"
    trials: int | None = None  # of samplers that are no grid
    pruner: str = "none"
    matched: str = "train_flops"  # those of the unique-layer twin of base; or images
    threads: int | None = None  # of each trial; None: this machine's cores over its workers
    hours: float | None = None  # that a trial may take
    presets: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Study:
    """A study under a preset and overrides of fit; its folder holds its runs, logs and journal."""

    name: str
    file: StudyFile
    runs_dir: str
    budget: float | None  # training FLOPs of every trial, where these are matched

    @property
    def folder(self) -> Path:
        return Path(self.runs_dir).expanduser() / self.name

    def cells(self) -> list[Cell]:
        """The cells of the grid that the constraints leave, each seed of all before the next seed."""
        known = flatten(compose_parsed(parse_overrides(self.file.base)))
        cells = [cell for cell in grid(self.file.space) if self.allows(cell, known)]
        if not cells:
            raise UserError(f"{self.name}: where={self.file.where} leaves no cell of the space")
        return cells

    def allows(self, cell: Cell, known: dict[str, Any]) -> bool:
        return all(holds(rule, known | cell) for rule in self.file.where)

    def config(self, cell: Cell, seed: int, trial: int | None = None) -> Config:
        """The configuration of a cell and a seed. Raises UserError where they make none."""
        parsed = [*parse_overrides(self.file.base), *cell.items()]
        parsed = [(key, value) for key, value in parsed if key != LABEL]
        if self.budget is not None:  # in place of what base asks for, which it was made from
            parsed = [(key, value) for key, value in parsed if not key.startswith("budget.")]
            parsed.append(("budget.train_flops", self.budget))
        config = compose_parsed([*parsed, ("seed", seed), ("runs_dir", self.runs_dir)])
        name = f"{self.name}/{arm_name(cell, config)}"
        return replace(config, name=name, study=self.name, trial=trial)

    def values(self, configs: list[Config]) -> list[float]:
        """The objectives of a trial: means over its seeds, at the trained loop count. Raises UserError."""
        measured = [final_row(config) for config in configs]
        values = []
        for metric in self.file.objectives:
            found = [row[metric] for row in measured if isinstance(row.get(metric), int | float)]
            if len(found) < len(measured):
                raise UserError(f"objectives.{metric}: no such number in the rows of the run")
            values.append(sum(found) / len(found))
        return values


def final_row(config: Config) -> dict[str, Any]:
    """The last measurement of a run at its trained loop count."""
    rows = [
        row
        for row in read_rows(Run.of(config).rows)
        if row["kind"] == "eval" and row["loops"] == config.loops
    ]
    if not rows:
        raise UserError(
            f"{config.name}: the run has no row at loops={config.loops}; keep evaluate=true and that "
            "count among evaluate_loops"
        )
    return rows[-1]


def arm_name(cell: Cell, config: Config) -> str:
    """A folder's name from a cell as it was resolved: loops4-ilsd; strings stand for themselves."""
    resolved = flatten(config)
    parts = []
    for key, asked in cell.items():
        value = resolved.get(key, resolved.get(f"{key}.name", asked))
        text = value if isinstance(value, str) else f"{key.split('.')[-1]}{value}"
        parts.append(re.sub(r"[^A-Za-z0-9._]+", "_", text).strip("_."))
    return "-".join(parts) or "base"


def unique(configs: Iterator[tuple[Cell, int, Config]]) -> list[tuple[Cell, int, Config]]:
    """Without those that are the same run as one before: with one loop all supervisions are one."""
    found: dict[str, tuple[Cell, int, Config]] = {}
    for cell, seed, config in configs:
        found.setdefault(identity(config), (cell, seed, config))
    return list(found.values())


def grid_trials(study: Study) -> list[tuple[Cell, int, Config]]:
    """Every trial of a grid study: cell, seed and configuration."""
    cells = study.cells()
    return unique(
        (cell, seed, study.config(cell, seed)) for seed in study.file.seeds for cell in cells
    )


# --- reading --------------------------------------------------------------------------------------


def load_study(
    name: str, preset: str | None, overrides: list[str], runs_dir: str, changes: dict[str, Any]
) -> Study:
    """The study of sweeps/NAME.yaml (or of a file), checked. Raises UserError.

    overrides: of fit, on top of the file's; another study by another name. changes: of the file's own
    keys (seeds, trials …), by which a study may grow.
    """
    path = study_path(name)
    file = read_study(path, preset, changes)
    parse_overrides(overrides)
    file = replace(file, base=[*file.base, *overrides])
    check_study(file, path)
    parts = [path.stem, preset, digest(sorted(overrides))[:6] if overrides else None]
    own = "-".join(part for part in parts if part)
    budget = None
    if file.matched == "train_flops":
        budget = budget_flops(twin(compose_parsed(parse_overrides(file.base))))
    study = Study(own, file, runs_dir, budget)
    if file.sampler == "grid":
        study.config(study.cells()[0], file.seeds[0])  # says what is wrong with the base at once
    return study


def study_path(name: str) -> Path:
    path = Path(name).expanduser()
    if path.suffix in (".yaml", ".yml"):
        if not path.is_file():
            raise UserError(f"{name}: no such study file")
        return path
    path = folder("sweeps") / f"{name}.yaml"
    if not path.is_file():
        known = sorted(file.stem for file in folder("sweeps").glob("*.yaml"))
        raise UserError(f"{name}: no such study; {nearest(name, known, 'studies')}")
    return path


def read_study(path: Path, preset: str | None, changes: dict[str, Any]) -> StudyFile:
    try:
        plain = OmegaConf.to_container(OmegaConf.load(path))
    except (OSError, UnicodeDecodeError, YAMLError, OmegaConfBaseException) as error:
        raise UserError(f"{path}: not YAML: {first_line(error)}") from error
    if not isinstance(plain, dict) or not all(isinstance(key, str) for key in plain):
        raise UserError(f"{path}: not a mapping of keys to values")
    presets = plain.get("presets") or {}
    if preset is not None:
        if preset not in presets:
            raise UserError(f"preset={preset}: {nearest(preset, [*map(str, presets)], 'presets')}")
        chosen = dict(presets[preset])
        chosen["base"] = [*(plain.get("base") or []), *(chosen.get("base") or [])]
        plain |= chosen
    plain = {"objectives": {"fd_classifier": "minimize"}} | plain | changes
    known = [each.name for each in fields(StudyFile)]
    for key in map(str, plain):
        if key not in known:
            raise UserError(f"{path}: unknown key {key}: {nearest(key, known, 'keys')}")
    try:
        merged = OmegaConf.merge(OmegaConf.structured(StudyFile), plain)
        file = OmegaConf.to_object(merged)
    except OmegaConfBaseException as error:
        raise UserError(f"{path}: {first_line(error)}") from error
    assert isinstance(file, StudyFile)
    return file


def check_study(file: StudyFile, path: Path) -> None:
    for key, options in (("sampler", SAMPLERS), ("pruner", PRUNERS), ("matched", MATCHED)):
        value = getattr(file, key)
        if value not in options:
            raise UserError(f"{path}: {key}={value}: choose one of {', '.join(options)}")
    for metric, direction in file.objectives.items():
        if direction not in DIRECTIONS:
            raise UserError(
                f"{path}: objectives.{metric}={direction}: choose one of {', '.join(DIRECTIONS)}"
            )
    if not file.objectives:
        raise UserError(
            f"{path}: objectives is empty; name a metric, e.g. {{fd_classifier: minimize}}"
        )
    if file.pruner != "none" and len(file.objectives) > 1:
        raise UserError(
            f"{path}: pruner={file.pruner}: a study of several objectives cannot be pruned, because no "
            "order of unfinished trials exists; leave the pruner out"
        )
    if not file.seeds or len(set(file.seeds)) < len(file.seeds) or min(file.seeds) < 0:
        raise UserError(f"{path}: seeds={file.seeds}: give different whole numbers of at least 0")
    if (file.sampler == "grid") != (file.trials is None):
        mend = "leave trials out: a grid has as many as cells" if file.trials else "give trials: N"
        raise UserError(f"{path}: sampler={file.sampler}: {mend}")
    for key in ("trials", "threads", "hours"):
        value = getattr(file, key)
        if value is not None and value <= 0:
            raise UserError(f"{path}: {key}={value}: must be above 0")
    check_space(file.space, f"{path}: space")
    for key in keys_of(file.space):
        if key in ("seed", "name", "runs_dir", "study", "trial"):
            raise UserError(f"{path}: space.{key}: the study sets it; seeds are in seeds")
