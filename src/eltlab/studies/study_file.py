"""sweeps/NAME.yaml: the keys of a study file, read and checked; and the keys that the command line adds."""

import os
from dataclasses import dataclass, fields
from pathlib import Path
from types import UnionType
from typing import Any

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from eltlab.common.errors import UserError, first_line, suggest
from eltlab.common.package_info import package_folder
from eltlab.config.identity import defines
from eltlab.config.keys import check_keys, key
from eltlab.studies.space import LABELS, changes_loss, check_space, keys_in, keys_of

DIRECTIONS = ("minimize", "maximize")
WATCHED = ("loss", "gap")  # columns of validation.csv
FORMS: dict[str, tuple[type | UnionType, str]] = {
    "base": (list, "a list of overrides, e.g. [experiment=demo]"),
    "where": (list, 'a list of constraints, e.g. ["loops divides model.depth"]'),
    "seeds": (list, "a list of whole numbers, e.g. [0, 1, 2]"),
    "objectives": (dict, "metrics and directions, e.g. {fd_classifier: minimize}"),
    "presets": (dict, "names and the keys that differ, e.g. {quick: {seeds: [0]}}"),
    "tune": (dict | None, "null, or keys, e.g. {keys: {optim.lr: [1.0e-3, 2.0e-3]}}"),
}
SET_BY_STUDY = ("seed", "name", "runs_dir", "study", "trial")
# The environment variable in place of storage=, which every user could read in the list of processes.
STORAGE_VARIABLE = "ELTLAB_STORAGE"
# Keys that say where workers run. They are not part of the study.
PLACES = ("trainer=", "trainer.slurm.")


@dataclass
class Tune:
    """How each arm of a study gets its own values of some keys, before its seeds are trained."""

    keys: Any = key(dict, "keys of fit and their candidates, e.g. {optim.lr: [1.0e-3, 2.0e-3]}")
    seeds: list[int] = key(lambda: [100], "seeds of the tuning runs", low=0)
    budget: float = key(0.25, "budget of a tuning run, as a share of a trial's", low=0.01, high=1)
    by: str = key(
        "full", "the held-out loss of the last exit, or the mean over all exits", choices=("full", "mean")
    )


@dataclass
class StudyFile:
    """The keys of a study file. fid@2 is a metric at two loops; fid is the metric at the loops of the run."""

    base: list[str] = key(list, "overrides of fit that all trials share")
    space: Any = key(dict, "keys of fit and their choices or ranges, as in space.py")
    where: list[str] = key(list, "constraints on the parameters")
    seeds: list[int] = key(lambda: [0, 1, 2], "one run of each trial per seed")
    objectives: dict[str, str] = key(dict, "metrics and directions")
    sampler: str = key("grid", "chooses parameters", choices=("grid", "random", "tpe", "nsga2"))
    trials: int | None = key(None, "number of trials; a grid gives its own", above=0)
    pruner: str = key("none", "ends trials early", choices=("none", "median", "hyperband"))
    watch: str = key("loss", "what the pruner compares, e.g. gap, or loss@2 for one exit")
    matched: str = key("train_flops", "equal in all trials", choices=("train_flops", "images"))
    tune: Tune | None = key(None, "keys whose values each arm chooses for itself")
    threads: int | None = key(None, "threads per trial; null: cores / workers", above=0)
    hours: float | None = key(None, "time limit of a trial", above=0)
    presets: dict[str, Any] = key(dict, "names and the keys that differ")


def split_metric(metric: str) -> tuple[str, int | None]:
    """The name and the loop count of a metric such as fid@2; None if it names no count."""
    name, at, count = metric.partition("@")
    if at and not (count.isascii() and count.isdigit() and int(count) > 0):
        raise UserError(f"{metric}: write a loop count after @, e.g. {name}@2")
    return name, int(count) if at else None


# --- reading --------------------------------------------------------------------------------------


def study_path(name: str) -> Path:
    """The file of a study, from its name in sweeps/ or its path. Raises UserError."""
    path = Path(name).expanduser()
    if path.suffix in (".yaml", ".yml"):
        if not path.is_file():
            raise UserError(f"{name}: no such study file")
        return path
    path = package_folder("sweeps") / f"{name}.yaml"
    if not path.is_file():
        raise UserError(f"{name}: no such study; {suggest(name, known_studies(), 'studies')}")
    return path


def known_studies() -> list[str]:
    """The names of the studies in sweeps/."""
    return sorted(path.stem for path in package_folder("sweeps").glob("*.yaml"))


def read_study(path: Path, preset: str | None, changes: dict[str, Any]) -> StudyFile:
    """Reads and checks a study file, with one of its presets and with changed keys. Raises UserError."""
    try:
        plain = OmegaConf.to_container(OmegaConf.load(path))
    except (OSError, UnicodeDecodeError, YAMLError, OmegaConfBaseException) as error:
        raise UserError(f"{path}: not YAML: {first_line(error)}") from error
    check_form(plain, str(path))
    assert isinstance(plain, dict)
    presets = plain.get("presets", {})
    for name, differing in presets.items():
        if not isinstance(name, str):
            raise UserError(f"{path}: presets.{name}: a name must be text; write '{name}' in quotes")
        check_form(differing, f"{path}: presets.{name}")
    if preset is not None:
        if preset not in presets:
            raise UserError(f"preset={preset}: {suggest(preset, [*presets], 'presets')}")
        base = [*plain.get("base", []), *presets[preset].get("base", [])]
        plain |= presets[preset] | {"base": base}
    try:
        file = OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(StudyFile), plain | changes))
    except OmegaConfBaseException as error:
        key = f"{error.full_key}: " if error.full_key else ""
        raise UserError(f"{path}: {key}{first_line(error)}") from error
    assert isinstance(file, StudyFile)
    check_study(file, path)
    return file


def check_form(plain: Any, where: str) -> None:
    """Raises UserError if the YAML is not a mapping of a study's keys. where: the place that errors name."""
    if not isinstance(plain, dict) or not all(isinstance(name, str) for name in plain):
        raise UserError(f"{where}: not a mapping of keys to values")
    known = [each.name for each in fields(StudyFile)]
    for name in plain:
        if name not in known:
            raise UserError(f"{where}: unknown key {name}: {suggest(name, known, 'keys')}")
    for name, (kind, form) in FORMS.items():
        if name in plain and not isinstance(plain[name], kind):
            raise UserError(f"{where}: {name}={plain[name]}: give {form}")
    known = [each.name for each in fields(Tune)]
    for name in plain.get("tune") or {}:
        if name not in known:
            raise UserError(f"{where}: unknown key tune.{name}: {suggest(str(name), known, 'keys of tune')}")
    for name in ("base", "where"):
        for each in plain.get(name, []):
            if not isinstance(each, str):
                raise UserError(f"{where}: {name}: {each} is not text; give {FORMS[name][1]}")


# --- rules ----------------------------------------------------------------------------------------


def check_study(file: StudyFile, path: Path) -> None:
    try:
        check_keys(file)
    except UserError as error:
        raise UserError(f"{path}: {error}") from None
    chosen = [("watch", split_metric(file.watch)[0], WATCHED)]
    for metric, direction in file.objectives.items():
        split_metric(metric)
        chosen.append((f"objectives.{metric}", direction, DIRECTIONS))
    for name, value, choices in chosen:
        if value not in choices:
            raise UserError(f"{path}: {name}={value}: choose one of {', '.join(choices)}")
    if not file.seeds or len(set(file.seeds)) < len(file.seeds) or min(file.seeds) < 0:
        raise UserError(f"{path}: seeds={file.seeds}: give distinct whole numbers of at least 0")
    if (file.sampler == "grid") != (file.trials is None):
        fix = "remove trials: the space gives their number" if file.trials else "give trials: N"
        raise UserError(f"{path}: sampler={file.sampler}: {fix}")
    here = f"{path}: pruner={file.pruner}"
    if file.pruner != "none" and len(file.objectives) > 1:
        raise UserError(
            f"{here}: a study with several objectives cannot be pruned, because its unfinished trials "
            "have no order; remove the pruner"
        )
    if file.pruner != "none" and file.sampler != "grid" and len(file.seeds) > 1:
        raise UserError(
            f"{here}: a trial of sampler={file.sampler} trains all of seeds={file.seeds} one after "
            "the other, and one seed says nothing about the rest; give one seed, or remove the pruner"
        )
    if not file.space:
        raise UserError(f"{path}: space is empty; give a key of fit and its choices, e.g. loops: [1, 2]")
    check_space(file.space, f"{path}: space")
    for name in keys_of(file.space):
        if name in SET_BY_STUDY:
            raise UserError(f"{path}: space.{name}: the study sets it; seeds are in seeds")
        if name.startswith("budget.") and file.matched == "train_flops":
            raise UserError(
                f"{path}: space.{name}: matched=train_flops gives all trials the budget of base; write "
                "matched: images"
            )
    if file.tune is not None:
        check_tune(file, file.tune, path)


def check_tune(file: StudyFile, tune: Tune, path: Path) -> None:
    """Raises UserError if a study cannot be tuned in this way."""
    here = f"{path}: tune"
    if file.sampler != "grid":
        raise UserError(f"{here}: sampler={file.sampler} draws values itself; move the keys into space")
    if file.pruner != "none":
        raise UserError(f"{here}: pruner={file.pruner} would compare tuning runs with trials; remove one")
    check_space(tune.keys, f"{here}.keys")
    if not tune.keys:
        raise UserError(f"{here}.keys is empty; give a key of fit and its candidates, or remove tune")
    for name, values in tune.keys.items():
        if not isinstance(values, list):
            raise UserError(f"{here}.keys.{name}={values}: give a list of candidates")
        if name in (*SET_BY_STUDY, *LABELS, "data.tuning") or name.startswith("budget."):
            raise UserError(f"{here}.keys.{name}: the study sets it; remove it")
        if not defines(name):
            raise UserError(
                f"{here}.keys.{name} does not affect training, so a held-out loss cannot choose it; remove it"
            )
        if changes_loss(name):
            raise UserError(
                f"{here}.keys.{name} changes what the held-out loss is, so the losses of its candidates "
                "cannot be compared; move it into space"
            )
        if name in keys_of(file.space):
            raise UserError(f"{here}.keys.{name}: the space sets it too; remove one of the two")
        if rules := [rule for rule in file.where if name in keys_in(rule)]:
            raise UserError(f"{path}: where: {rules[0]!r}: tune sets {name} later; remove the constraint")
    if not tune.seeds or len(set(tune.seeds)) < len(tune.seeds) or set(tune.seeds) & set(file.seeds):
        raise UserError(
            f"{here}.seeds={tune.seeds}: give distinct whole numbers that are not among seeds={file.seeds}"
        )


# --- the command line -----------------------------------------------------------------------------


def storage_url(text: str | None) -> str | None:
    """The value of storage=, and of STORAGE_VARIABLE in the environment."""
    return None if text in ("", "null") else text


@dataclass
class SweepKeys:
    """The keys of sweep itself, in addition to those of fit."""

    preset: str | None = key(None, "part of the study file that changes the rest, e.g. quick")
    workers: int | None = key(
        None,
        "trials at a time on this machine, or jobs of trainer=slurm; null: one per GPU, else by the "
        "study's threads; 0: start none and show the trials of other machines",
        low=0,
    )
    storage: str | None = key(
        lambda: storage_url(os.environ.get(STORAGE_VARIABLE)),
        "postgresql://…, for many machines; null: a journal in the study's folder; can also be set as "
        f"{STORAGE_VARIABLE} in the environment, which hides its password",
    )
    runs_dir: str = key("runs", "the study's folder is RUNS_DIR/NAME[-PRESET]")
    seeds: list[int] | None = key(None, "seeds in place of the file's, e.g. [0,1,2]")
    trials: int | None = key(None, "number of trials in place of the file's")
    threads: int | None = key(None, "threads per trial in place of the file's")
    hours: float | None = key(None, "time limit in place of the file's")
    lease: float = key(60.0, "seconds without a heartbeat after which a trial is taken over", above=0)
    retry: bool = key(False, "run failed trials once more")
    plan: bool = key(False, "print what would run and what it costs, and end")
    # Set by a sweep for the processes it starts: the number of the worker, and the sweep's process id.
    worker: int | None = key(None, "", internal=True)
    sweep: int | None = key(None, "", internal=True)

    def changes(self) -> dict[str, Any]:
        """The keys of the study file that the command line changes."""
        given = {key: getattr(self, key) for key in ("seeds", "trials", "threads", "hours")}
        return {key: value for key, value in given.items() if value is not None}
