"""A study: the configurations of its trials, and the values that judge them."""

import json
import random
from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

from omegaconf import OmegaConf

from eltlab.common.disk_cache import digest
from eltlab.common.errors import UserError, suggest
from eltlab.config.cost.bill import bill
from eltlab.config.cost.flops import budget_flops
from eltlab.config.cost.twins import twin
from eltlab.config.devices import check_one_device
from eltlab.config.identity import MEASURING
from eltlab.config.keys import flatten
from eltlab.config.parsing import compose_node, parse_overrides
from eltlab.config.run_name import clean
from eltlab.config.schema import Config, DataConfig
from eltlab.evaluation.missing_rows import Request, measured_rows
from eltlab.runs.compose_config import compose_parsed
from eltlab.runs.run_folder import Run
from eltlab.studies.space import (
    LABELS,
    Dice,
    Params,
    changes_loss,
    draw,
    fixed_keys,
    grid,
    holds,
    keys_in,
    keys_of,
    spaces_in,
)
from eltlab.studies.study_file import SET_BY_STUDY, StudyFile, read_study, split_metric, study_path

# The measured columns of rows, by metrics.extractor.
CLASSIFIER = ("kd_classifier", "fd_classifier", "fd_classifier_inf", "memorised", "accuracy")
METRICS = {
    "classifier": ("heldout_loss", *CLASSIFIER),
    "i3d": ("heldout_loss", "fvd", "fvd_inf", *CLASSIFIER),
    "inception": ("heldout_loss", "fid", "fid_inf", "kid", "precision", "recall", "memorised", "isc"),
}
# The default objectives if it cannot be the held-out loss: distances without the bias of the sample number.
DISTANCES = {"classifier": "kd_classifier", "i3d": "fvd_inf", "inception": "kid"}
TIMES = ("train_seconds", "images_per_second", "peak_memory_bytes")
DRAWS = 1000  # random draws from a space, which show how much its constraints allow
ALLOWED = 20  # at least this many of them must be allowed; then a sampler finds some (trial_queue.MOST_DRAWS)


def place_keys(data: DataConfig) -> tuple[str, ...]:
    """The keys of data that make no different study: how files are read, and where known sets are stored."""
    # A study of data=images or data=clips is about what data.root contains.
    return ("workers", "in_memory", *(() if data.name in ("images", "clips") else ("root",)))


class PlannedTrial(NamedTuple):
    """A trial of a grid."""

    params: Params
    seed: int
    config: Config

    @property
    def key(self) -> str:
        """Equal for trials that are the same run, measured the same way, whatever its name and folders."""
        places: dict[str, Any] = dict.fromkeys(place_keys(self.config.data))
        same = replace(self.config, name="", runs_dir="", data=replace(self.config.data, **places))
        if not same.evaluate:  # a tuning run, of which only the loss is measured
            nothing: dict[str, Any] = dict.fromkeys(("sampler", "metrics", "evaluate_loops"))
            same = replace(same, **nothing, ema=replace(same.ema, length=None))
        return digest(same)


@dataclass(frozen=True)
class Study:
    """A study under a preset and overrides of fit; its folder holds its runs, logs and journal."""

    name: str
    file: StudyFile
    runs_dir: str
    base: Config  # without the parameters of a trial
    budget: float | None  # training FLOPs of every trial; None: matched on images
    default_objectives: bool = False  # whether the file gives none

    @property
    def folder(self) -> Path:
        return Path(self.runs_dir).expanduser() / self.name

    def allows(self, params: Params) -> bool:
        """Whether the constraints allow these parameters."""
        known = flatten(self.base) | params
        return all(holds(rule, known) for rule in self.file.where)

    def with_objectives(self, stored: list[str]) -> "Study":
        """This study with the objectives that it was started with, "METRIC: DIRECTION", if its file gives
        none: a different version may have a different default."""
        objectives = dict(text.split(": ") for text in stored)
        by_loss = "heldout_loss" in {split_metric(metric)[0] for metric in objectives}
        if not (objectives and self.default_objectives) or (
            by_loss and why_not_by_loss(self.file, self.base)
        ):
            return self
        return replace(self, file=replace(self.file, objectives=objectives))

    @property
    def tuned_keys(self) -> dict[str, list[Any]]:
        """The keys that each arm chooses values of, and the candidates."""
        return {} if self.file.tune is None else self.file.tune.keys

    def config(
        self, params: Params, seed: int, trial: int | None = None, tuned_on: str | None = None
    ) -> Config:
        """The configuration of these parameters and a seed. Raises UserError if it is invalid.

        tuned_on: what the values of the tuned keys were chosen on.
        """
        parsed = [*parse_overrides(self.file.base), *params.items()]
        parsed = [(key, value) for key, value in parsed if key not in LABELS]
        if self.budget is not None:  # replaces the budget in base, from which it was computed
            parsed = [(key, value) for key, value in parsed if not key.startswith("budget.")]
            parsed.append(("budget.train_flops", self.budget))
        config = compose_parsed([*parsed, ("seed", seed), ("runs_dir", self.runs_dir), ("name", "trial")])
        check_one_device(config, "a trial of a study runs on one device")
        # Without what only measures: trials that differ in such keys are one run, which is trained once.
        trained = {key for key in params if not only_measures(self.file.space, key)}
        name = f"{self.name}/{self.arm(params, config, trained)}"
        check_measured(self.file, config, name)
        chosen = {key: value for key, value in params.items() if key in self.tuned_keys}
        tuned = None if tuned_on is None else json.dumps(chosen)
        return replace(config, name=name, study=self.name, trial=trial, tuned=tuned, tuned_on=tuned_on)

    def arm(self, params: Params, config: Config, keys: Collection[str] | None = None) -> str:
        """A name from the resolved parameters: loops4-ilsd. A string appears without its key.

        keys: those to name, if not all.
        """
        resolved = flatten(config)
        parts = []
        fixed = {*fixed_keys(self.file.space, params), *self.tuned_keys}
        for key, requested in params.items():
            if key in fixed or (keys is not None and key not in keys):
                continue
            value = resolved.get(key, resolved.get(f"{key}.name", requested))
            number = f"{value:.4g}" if isinstance(value, float) else str(value)
            text = value if isinstance(value, str) else f"{key.split('.')[-1]}{number}"
            parts.append(clean(text))
        return "-".join(parts) or "base"

    def values(self, configs: list[Config]) -> list[float]:
        """The objectives of a trial, means over its seeds' runs. Raises UserError."""
        return [
            sum(final_value(config, objective) for config in configs) / len(configs)
            for objective in self.file.objectives
        ]


def only_measures(space: Mapping[str, Any], key: str) -> bool:
    """Whether a key of a space says how a run is measured, and changes nothing in its training."""
    if key in LABELS:  # of branches that set only such keys
        branches = [spaces[key] for spaces in spaces_in(space) if key in spaces]
        return all(only_measures(space, inner) for branch in branches for inner in keys_of({key: branch})[1:])
    return key in (*MEASURING, "evaluate_loops") or key.startswith(("sampler.", "metrics."))


def check_measured(file: StudyFile, config: Config, name: str) -> None:
    """Raises UserError if a run will lack an objective's row, or the exit that a pruner watches."""
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
                "two, or exclude the parameters by where"
            )
    exit = split_metric(file.watch)[1] or config.loops
    if file.pruner != "none" and exit > config.loops:
        raise UserError(
            f"watch={file.watch}: {name} has loops={config.loops} and no such exit; watch another exit, or "
            "exclude the parameters by where"
        )


def final_value(config: Config, objective: str) -> float:
    """An objective in the row of a run that its configuration measures, at the end of its training and at a
    constant loop count. Raises UserError."""
    metric, loops = split_metric(objective)
    # The run may have been measured under other sampler.* keys too: by another trial, or by evaluate.
    request = Request(config, loops or config.loops)
    [row] = measured_rows(Run.of(config), [request], config.seed, config.images)
    value = row and row.get(metric)
    if not isinstance(value, int | float):
        raise UserError(f"objectives.{objective}: no such number in the rows of {config.name}")
    return value


def grid_trials(study: Study) -> list[PlannedTrial]:
    """Every trial of a grid, all of them with one seed before the next seed. Raises UserError.

    If several trials are the same run, only the first is kept: with one loop all supervisions are equal.
    """
    allowed = [params for params in grid(study.file.space) if study.allows(params)]
    if not allowed:
        raise UserError(f"{study.name}: where={study.file.where} forbids the whole space")
    first = study.file.seeds[0]
    planned = [PlannedTrial(params, first, study.config(params, first)) for params in allowed]
    distinct = {trial.key: trial for trial in reversed(planned)}  # the first of each key
    return [
        PlannedTrial(params, seed, replace(config, seed=seed))
        for seed in study.file.seeds
        for params, _, config in reversed(distinct.values())
    ]


# --- from its file --------------------------------------------------------------------------------


def load_study(
    name: str, preset: str | None, overrides: list[str], runs_dir: str, changes: dict[str, Any]
) -> Study:
    """The study of sweeps/NAME.yaml, or of a file, checked. Raises UserError.

    overrides: of fit, after the file's base; they make a different study, with a different name.
    changes: of the file's keys (seeds, trials …); the study keeps its name and may grow.
    """
    path = study_path(name)
    file = read_study(path, preset, changes)
    check_overrides(overrides, file, path)
    file = replace(file, base=[*file.base, *overrides])
    base = compose_parsed(parse_overrides(file.base))
    default = not file.objectives
    if default:
        file = replace(file, objectives={default_objective(file, base): "minimize"})
    if file.tune is not None and (base.data.tuning or "data.tuning" in keys_of(file.space)):
        raise UserError(f"{path}: data.tuning: tune sets it; remove it")
    check_objectives(file, base, path)
    check_where(file, base, path)
    identifying = identifying_overrides(overrides, base)
    parts = [path.stem, preset, digest(sorted(identifying))[:6] if identifying else None]
    budget = budget_flops(twin(base)) if file.matched == "train_flops" else None
    study = Study("-".join(filter(None, parts)), file, runs_dir, base, budget, default)
    if file.sampler != "grid":
        check_draws(study, path)
    return study


def check_overrides(overrides: list[str], file: StudyFile, path: Path) -> None:
    """Raises UserError for an override that no trial would see: the study or its space sets the key."""
    for key, value in parse_overrides(overrides):
        if key in SET_BY_STUDY:
            raise UserError(f"{key}={value}: the study sets it; seeds are in seeds=")
        tuned = file.tune is not None and (key in file.tune.keys or key == "data.tuning")
        if key in file.space or tuned:
            raise UserError(
                f"{key}={value}: {'tune' if tuned else 'the space'} of {path} sets it in every trial; remove "
                "it, or change a copy of the file"
            )


def identifying_overrides(overrides: list[str], base: Config) -> list[str]:
    """The overrides that make a different study. The place of the data does not, unless it names an encoded
    set: then data.encoding stands for it."""
    places = {f"data.{key}" for key in place_keys(base.data)}
    kept = [text for text in overrides if text.partition("=")[0] not in places]
    if base.data.encoding and len(kept) < len(overrides):
        kept.append(f"data.encoding={base.data.encoding}")
    return kept


def default_objective(file: StudyFile, base: Config) -> str:
    """The held-out loss, which depends on neither the number of samples nor their noise; or a distance."""
    return DISTANCES[str(base.metrics.extractor)] if why_not_by_loss(file, base) else "heldout_loss"


def why_not_by_loss(file: StudyFile, base: Config) -> str | None:
    """Why heldout_loss cannot judge the trials of a study; None: it can."""
    if changing := [key for key in keys_of(file.space) if changes_loss(key)]:
        return f"space.{changing[0]} changes what the held-out loss is, so trials cannot be compared by it"
    if file.sampler != "grid" and not base.data.tuning:
        return (
            f"sampler={file.sampler} would choose by the test split, which is for reports; add "
            "data.tuning=true to base, which holds out a tenth of the training split"
        )
    return None


def check_objectives(file: StudyFile, base: Config, path: Path) -> None:
    """Raises UserError if the rows of a trial will not have a column for an objective."""
    extractor = str(base.metrics.extractor)
    known = [*METRICS[extractor], *TIMES, *bill(base, "cpu", "32-true")]
    for objective in file.objectives:
        metric = split_metric(objective)[0]
        if metric == "heldout_loss" and (why := why_not_by_loss(file, base)):
            instead = DISTANCES[extractor]
            raise UserError(f"{path}: objectives.{objective}: {why}; or give {instead}")
        if metric in known:
            continue
        others = [key for key, names in METRICS.items() if metric in names]
        hint = f"metrics.extractor={others[0]} gives it" if others else suggest(metric, known, "")
        raise UserError(f"{path}: objectives.{objective}: rows will have no {metric}; {hint}")
    if file.pruner != "none" and not base.trainer.validations:
        raise UserError(
            f"{path}: pruner={file.pruner} reads validation.csv, and trainer.validations=0; "
            "remove one of the two"
        )


def check_where(file: StudyFile, base: Config, path: Path) -> None:
    """Raises UserError if a constraint uses a key that fit derives from keys of the space.

    Its value is known only when a configuration is composed, which is too slow for a sampler's draws.
    """
    space, known = keys_of(file.space), flatten(base)
    used = [(rule, key) for rule in file.where for key in keys_in(rule) if key in known and key not in space]
    if not used:
        return
    requested = compose_node(parse_overrides(file.base))
    for rule, key in used:
        group = key.partition(".")[0]
        if group in space or "experiment" in space:
            why = f"{group if group in space else 'experiment'} of the space sets it"
        elif OmegaConf.select(requested, key) is None:
            why = "fit derives it from other keys"
        elif key == "model.depth" and ("unique_layers" in space or requested.unique_layers is not None):
            why = "it is unique_layers * loops, plus prelude and coda"
        elif key == "budget.images" and file.matched == "train_flops":
            why = "matched=train_flops sets it"
        else:
            continue
        raise UserError(
            f"{path}: where: {rule!r}: {key} may differ between trials: {why}; express it by keys of "
            "the space, e.g. model.depth / loops for unique_layers"
        )


def check_draws(study: Study, path: Path) -> None:
    """Raises UserError if constraints allow too little of a space, or a key of it is not a key of fit."""
    dice = Dice(random.Random(0))
    allowed = [p for _ in range(DRAWS) if study.allows(p := draw(study.file.space, dice))]
    if len(allowed) < ALLOWED:
        raise UserError(
            f"{path}: where={study.file.where} allows {len(allowed) or 'none'} of {DRAWS} random draws "
            f"from the space, and a sampler requires {ALLOWED}; narrow the choices and ranges to what it "
            "allows, or give choices a space of their own"
        )
    for key in keys_of(study.file.space):
        params = next((params for params in allowed if key in params), None)
        if params is not None:
            study.config(params, study.file.seeds[0])
