"""A study: the configurations of its trials, and what they are judged by."""

import random
import re
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

from omegaconf import OmegaConf

from eltlab.common.errors import UserError, suggest
from eltlab.common.hashing import digest
from eltlab.config.cost.bill import bill
from eltlab.config.cost.flops import budget_flops
from eltlab.config.cost.twins import twin
from eltlab.config.devices import one_device
from eltlab.config.flat import flatten
from eltlab.config.identity import whereabouts
from eltlab.config.parsing import compose_node, parse_overrides
from eltlab.config.schema import Config
from eltlab.runs.composing import compose_parsed
from eltlab.runs.row_files import read_rows
from eltlab.runs.run_folder import Run
from eltlab.studies.constraints import holds, keys_in
from eltlab.studies.space import LABEL, Dice, Params, decided, draw, grid, keys_of
from eltlab.studies.study_file import SET_BY_STUDY, StudyFile, read_study, split_metric, study_path

# What rows hold beside the bill, by metrics.extractor; the first is what a study is judged by.
METRICS = {
    "classifier": ("fd_classifier", "accuracy"),
    "i3d": ("fvd", "fd_classifier", "accuracy"),
    "inception": ("fid", "kid", "precision", "recall", "isc"),
}
TIMES = ("train_seconds", "images_per_second", "peak_memory_bytes")
DRAWS = 1000  # random cells of a space, by which its constraints are judged
ALLOWED = 20  # of them, with which a sampler finds a cell soon (ledger.LOST)


class Planned(NamedTuple):
    """A trial of a grid."""

    cell: Params
    seed: int
    config: Config

    @property
    def key(self) -> str:
        """The same for what would be the same run, measured the same way, whatever it is called and
        wherever its data lie."""
        places: dict[str, Any] = dict.fromkeys(whereabouts(self.config.data))
        data = replace(self.config.data, **places)
        return digest(replace(self.config, name="", runs_dir="", data=data))


@dataclass(frozen=True)
class Study:
    """A study under a preset and overrides of fit; its folder holds its runs, logs and journal."""

    name: str
    file: StudyFile
    runs_dir: str
    base: Config  # what all trials are changes of
    budget: float | None  # training FLOPs of every trial, where these are matched

    @property
    def folder(self) -> Path:
        return Path(self.runs_dir).expanduser() / self.name

    def allows(self, cell: Params) -> bool:
        """Whether the constraints do."""
        known = flatten(self.base) | cell
        return all(holds(rule, known) for rule in self.file.where)

    def config(self, cell: Params, seed: int, trial: int | None = None) -> Config:
        """The configuration of a cell and a seed. Raises UserError where they make none."""
        parsed = [*parse_overrides(self.file.base), *cell.items()]
        parsed = [(key, value) for key, value in parsed if key != LABEL]
        if self.budget is not None:  # in place of what base asks for, which it was made from
            parsed = [(key, value) for key, value in parsed if not key.startswith("budget.")]
            parsed.append(("budget.train_flops", self.budget))
        config = compose_parsed([*parsed, ("seed", seed), ("runs_dir", self.runs_dir)])
        one_device(config, "a trial of a study runs on one device")
        name = f"{self.name}/{self.arm(cell, config)}"
        check_measured(self.file, config, name)
        return replace(config, name=name, study=self.name, trial=trial)

    def arm(self, cell: Params, config: Config) -> str:
        """A folder's name from a cell as it was resolved: loops4-ilsd; strings stand for themselves."""
        resolved = flatten(config)
        parts = []
        for key, asked in cell.items():
            if key in decided(self.file.space, cell):
                continue
            value = resolved.get(key, resolved.get(f"{key}.name", asked))
            text = value if isinstance(value, str) else f"{key.split('.')[-1]}{short(value)}"
            parts.append(re.sub(r"[^A-Za-z0-9._]+", "_", text).strip("_."))
        return "-".join(parts) or "base"

    def values(self, configs: list[Config]) -> list[float]:
        """The objectives of a trial: means over its seeds. Raises UserError."""
        values = []
        for objective in self.file.objectives:
            metric, loops = split_metric(objective)
            found = [final_row(config, loops or config.loops).get(metric) for config in configs]
            numbers = [value for value in found if isinstance(value, int | float)]
            if len(numbers) < len(configs):
                raise UserError(f"objectives.{objective}: no such number in the rows of the run")
            values.append(sum(numbers) / len(numbers))
        return values


def short(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def check_measured(file: StudyFile, config: Config, name: str) -> None:
    """Raises UserError where a run will not have what its study is judged by, or what a pruner watches."""
    counts, why = config.evaluate_loops, f"evaluate_loops={config.evaluate_loops}"
    if config.sampler.loops is not None:
        counts, why = [config.sampler.loops], f"sampler.loops={config.sampler.loops}"
    if not config.evaluate:
        counts, why = [], "evaluate=false"
    for objective in file.objectives:
        loops = split_metric(objective)[1] or config.loops
        if loops not in (counts or []):
            raise UserError(
                f"objectives.{objective}: {why} gives {name} no row at loops={loops}; change one of the "
                "two, or leave the cell out by where"
            )
    exit = split_metric(file.watch)[1] or config.loops
    if file.pruner != "none" and exit > config.loops:
        raise UserError(
            f"watch={file.watch}: {name} has loops={config.loops} and no such exit; watch another, or "
            "leave the cell out by where"
        )


def final_row(config: Config, loops: int) -> dict[str, Any]:
    """The last measurement of a run at a constant loop count."""
    rows = [
        row
        for row in read_rows(Run.of(config).rows)
        if row["kind"] == "eval" and (row["loops"], row["loop_schedule"]) == (loops, "constant")
    ]
    if not rows:
        raise UserError(
            f"{config.name}: the run has no row at loops={loops}; keep evaluate=true and that count "
            "among evaluate_loops"
        )
    return rows[-1]


def grid_trials(study: Study) -> list[Planned]:
    """Every trial of a grid, all cells with one seed before the next seed. Raises UserError.

    What is the same run as one before is left out: with one loop all supervisions are one.
    """
    cells = [cell for cell in grid(study.file.space) if study.allows(cell)]
    if not cells:
        raise UserError(f"{study.name}: where={study.file.where} leaves no cell of the space")
    first = study.file.seeds[0]
    different = {
        planned.key: planned
        for planned in reversed([Planned(cell, first, study.config(cell, first)) for cell in cells])
    }
    return [
        Planned(cell, seed, replace(config, seed=seed))
        for seed in study.file.seeds
        for cell, _, config in reversed(different.values())
    ]


# --- from its file --------------------------------------------------------------------------------


def load_study(
    name: str, preset: str | None, overrides: list[str], runs_dir: str, changes: dict[str, Any]
) -> Study:
    """The study of sweeps/NAME.yaml (or of a file), checked. Raises UserError.

    overrides: of fit, on top of the file's; another study by another name. changes: of the file's own
    keys (seeds, trials …), by which a study may grow.
    """
    path = study_path(name)
    file = read_study(path, preset, changes)
    check_overrides(overrides, file, path)
    file = replace(file, base=[*file.base, *overrides])
    base = compose_parsed(parse_overrides(file.base))
    if not file.objectives:
        first = METRICS[str(base.metrics.extractor)][0]
        file = replace(file, objectives={first: "minimize"})
    check_objectives(file, base, path)
    check_where(file, base, path)
    others = differing(overrides, base)
    parts = [path.stem, preset, digest(sorted(others))[:6] if others else None]
    own = "-".join(part for part in parts if part)
    budget = budget_flops(twin(base)) if file.matched == "train_flops" else None
    study = Study(own, file, runs_dir, base, budget)
    if file.sampler != "grid":
        check_draws(study, path)
    return study


def check_overrides(overrides: list[str], file: StudyFile, path: Path) -> None:
    """Raises UserError for one that no trial would see: the study, or its space in every cell, sets it."""
    for key, value in parse_overrides(overrides):
        if key in SET_BY_STUDY:
            raise UserError(f"{key}={value}: the study sets it; seeds are in seeds=")
        if key in file.space:
            raise UserError(
                f"{key}={value}: {path} has it in its space, which sets it in every trial; leave it out, or "
                "change a copy of the file"
            )


def differing(overrides: list[str], base: Config) -> list[str]:
    """Of the overrides those that make another study: not where the data lie, but which encoded set."""
    places = {f"data.{key}" for key in whereabouts(base.data)}
    kept = [text for text in overrides if text.partition("=")[0] not in places]
    if base.data.encoding and len(kept) < len(overrides):
        kept.append(f"data.encoding={base.data.encoding}")
    return kept


def check_objectives(file: StudyFile, base: Config, path: Path) -> None:
    """Raises UserError for an objective that the rows of a trial will not have."""
    extractor = str(base.metrics.extractor)
    known = [*METRICS[extractor], *TIMES, *bill(base, "cpu", "32-true")]
    for objective in file.objectives:
        metric = split_metric(objective)[0]
        if metric in known:
            continue
        others = [key for key, names in METRICS.items() if metric in names]
        hint = f"metrics.extractor={others[0]} gives it" if others else suggest(metric, known, "")
        raise UserError(f"{path}: objectives.{objective}: rows will have no {metric}; {hint}")
    if file.pruner != "none" and not base.trainer.validations:
        raise UserError(
            f"{path}: pruner={file.pruner} looks at validation.csv, and trainer.validations=0; "
            "leave one of the two out"
        )


def check_where(file: StudyFile, base: Config, path: Path) -> None:
    """Raises UserError for a constraint on a key that the rules of fit make from others: what it is in a
    cell is known when the cell is composed, too slow for the draws of a sampler."""
    space, known = keys_of(file.space), flatten(base)
    used = [(rule, key) for rule in file.where for key in keys_in(rule)]
    used = [(rule, key) for rule, key in used if key in known and key not in space]
    if not used:
        return
    asked = compose_node(parse_overrides(file.base))
    for rule, key in used:
        group = key.partition(".")[0]
        if group in space or "experiment" in space:
            mend = f"{group if group in space else 'experiment'} of the space decides it"
        elif OmegaConf.select(asked, key) is None:
            mend = "fit makes it from other keys"
        elif key == "model.depth" and ("unique_layers" in space or asked.unique_layers is not None):
            mend = "it is unique_layers * loops, beside prelude and coda"
        elif key == "budget.images" and file.matched == "train_flops":
            mend = "matched=train_flops decides it"
        else:
            continue
        raise UserError(
            f"{path}: where: {rule!r}: {key} may differ from cell to cell: {mend}; write it by keys of "
            "the space, e.g. model.depth / loops for unique_layers"
        )


def check_draws(study: Study, path: Path) -> None:
    """Raises UserError for a space without a cell, and for a key that no configuration has."""
    dice = Dice(random.Random(0))
    drawn = (draw(study.file.space, dice) for _ in range(DRAWS))
    cells = [cell for cell in drawn if study.allows(cell)]
    if len(cells) < ALLOWED:
        raise UserError(
            f"{path}: where={study.file.where} allows {len(cells) or 'none'} of {DRAWS} random cells of "
            f"the space, and a sampler needs {ALLOWED}; narrow the choices and ranges to "
            "what it leaves, or give choices a space of their own"
        )
    for key in keys_of(study.file.space):
        cell = next((cell for cell in cells if key in cell), None)
        if cell is not None:
            study.config(cell, study.file.seeds[0])
