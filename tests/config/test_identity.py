"""The id of a run: what is part of it, and that it does not change."""

import json
import shutil
from collections import defaultdict
from copy import deepcopy
from dataclasses import replace
from functools import cache
from pathlib import Path

import pytest
from omegaconf import OmegaConf
from support.image_files import small
from support.paths import ROOT
from support.slurm import LOCAL, MANY
from support.tiny_run import tiny

from eltlab.config.identity import MEASURING, defines, identity
from eltlab.config.keys import flatten, stable_dict
from eltlab.config.parsing import to_config, typed
from eltlab.config.schema import Config
from eltlab.evaluation.protocol import protocol_id, sampling_protocol
from eltlab.runs.compose_config import compose
from eltlab.runs.old_runs import is_old, translate
from eltlab.runs.run_folder import Run


def test_where_a_run_trains_is_not_part_of_its_identity() -> None:
    assert Run.of(tiny(*LOCAL, "trainer.slurm.hours=3")) != Run.of(tiny())
    assert Run.of(tiny("trainer=slurm", *MANY)).folder == Run.of(tiny(MANY[-1])).folder


def test_the_content_of_an_extension_is_part_of_the_identity(extension_files: Path, tmp_path: Path) -> None:
    copy = tmp_path / "chain.py"
    copy.write_text((extension_files / "chain.py").read_text())
    here, there = (compose([f"supervision={path}"]) for path in (extension_files / "chain.py", copy))
    assert identity(here) == identity(there)  # its content counts, not its path
    copy.write_text(copy.read_text().replace("self.weight * distilled", "2 * distilled"))
    assert identity(compose([f"supervision={copy}"])) != identity(here)


def test_budgets_of_the_same_steps_are_one_run() -> None:
    one, other = (compose([f"budget.images={images}"]) for images in (1000, 1024))
    assert identity(one) == identity(other) and one.budget.images == 1024
    assert identity(compose(["budget.images=1025"])) != identity(one)


def test_where_the_data_are_is_not_part_of_the_identity(image_folder: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(image_folder, tmp_path / "elsewhere" / image_folder.name)
    assert identity(small(image_folder)) == identity(small(copy))
    assert small(image_folder).name == small(copy).name != small(copy.rename(tmp_path / "flowers")).name


def test_how_many_samples_are_drawn_at_a_time_is_part_of_no_id() -> None:
    one, other = (compose([f"sampler.batch={batch}"]) for batch in (1, 500))
    assert identity(one) == identity(other)
    assert sampling_protocol(one.sampler, 10, "", "", "") == sampling_protocol(other.sampler, 10, "", "", "")


ROWS = sorted((ROOT / "analysis" / "data").glob("*.jsonl"))
# If one of these changes, runs that users have trained are trained again, and their rows are not compared
# with new ones. A new key therefore has `since=` (CONTRIBUTING.md).
IDS = {
    "": "ee3a5e1464",
    "objective=diffusion": "f78e5e936e",
    "objective=flow": "ae44620b08",
    "supervision=final": "af80677403",
    "supervision=deep": "ed23054b53",
    "supervision=random_depth supervision.law=poisson supervision.mean=2": "56eb5a0ce2",
    "loops=1": "131dfa4733",
    "model=elt_b loops=12": "c58a7321cd",
    "experiment=demo optim.lr=0.002": "4ef2b759bd",
    "experiment=anatomy/prelude_coda": "a2cc2ded5d",
    "experiment=anatomy/inject_input": "13f1824288",
    "experiment=paper/elt_dit_8x4": "cb4de9f172",
    "experiment=paper/elt_l_8x3": "e9d78c1a51",
    "experiment=paper/elt_video_6x4": "0bc2bc599e",
    "data=sprites": "dcc7ad243e",
    "data=cifar10 objective=flow loops=2 seed=1": "62b5502bf7",
    "data=fashion_mnist supervision.weight.shape=cosine model.dropout=0.1": "5e0a4154f2",
    "budget.train_flops=1e12": "f07f3f3991",
}


PROTOCOLS = {"masked": "0ee8325b71c3", "diffusion": "26e256a304cb", "flow": "b18f0f994693"}


@pytest.mark.parametrize("overrides", IDS)
def test_run_ids_do_not_change(overrides: str) -> None:
    assert identity(compose(overrides.split())) == IDS[overrides]


@pytest.mark.parametrize(("objective", "expected"), PROTOCOLS.items())
def test_protocol_ids_do_not_change(objective: str, expected: str) -> None:
    sampler = compose([f"objective={objective}"]).sampler
    found = sampling_protocol(sampler, 1000, "32-true", "an extractor", "a reference")
    assert protocol_id(found) == expected


@cache
def config_of(recorded: str) -> Config:
    """The configuration in a row's cfg, as JSON, without resolving it again. Rows of a run share it."""
    nested: dict = {}
    for name, value in json.loads(recorded).items():
        *sections, last = name.split(".")
        inner = nested
        for section in sections:
            inner = inner.setdefault(section, {})
        inner[last] = value
    return to_config(typed(OmegaConf.create(translate(nested) if is_old(nested) else nested)))


@pytest.mark.integration
@pytest.mark.parametrize("path", ROWS, ids=lambda path: path.stem)
def test_ids_of_committed_rows_are_found_again(path: Path) -> None:
    """Rows made before ema.lengths keep the id that they have: their keys were translated."""
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    for row in rows:
        protocol = json.loads(row["protocol_text"])
        assert protocol_id(protocol) == row["protocol"]
    configs = defaultdict(set)
    for row in rows:
        if row["kind"] == "eval":
            config = config_of(json.dumps(row["cfg"]))
            if "ema.decay" not in row["cfg"]:
                configs[row["run"].rpartition("/")[2]].add(identity(config))
            drawn = sampling_protocol(config.sampler, row["samples"], "", "", "")
            stored = json.loads(row["protocol_text"])
            own = {n: value for n, value in stored.items() if n.startswith("sampler.") and n not in MEASURING}
            assert own == {n: value for n, value in drawn.items() if n.startswith("sampler.")}
    assert all(found == {run} for run, found in configs.items())


def test_keys_of_clips_and_encoded_sets_are_not_part_of_a_run_on_images() -> None:
    found = stable_dict(compose([]).data)
    assert not {"kind", "factor", "encoding", "stride", "split", "frame_patch"} & set(found)
    assert {"frames", "size", "patch"} <= set(found)
    assert defines("data.stride") and not defines("data.root")


def test_a_codebook_that_nothing_reads_is_not_part_of_the_identity() -> None:
    for objective, counts in {"masked": True, "diffusion": False, "flow": False}.items():
        one, other = (compose([f"objective={objective}", f"data.codebook={codes}"]) for codes in (32, 64))
        assert (identity(one) != identity(other)) == (one.name != other.name) == counts


def test_rows_and_run_ids_agree_on_what_defines_a_model() -> None:
    """A key makes runs of one name differ exactly if it is in the run's hash."""
    config = tiny()
    for key in flatten(config):
        other = deepcopy(config)
        *sections, last = key.split(".")
        holder = other
        for section in sections:
            holder = getattr(holder, section)
        setattr(holder, last, "another")
        assert (identity(other) != identity(config)) == defines(key), key


def test_measuring_keys_train_no_model_twice() -> None:
    config = compose(["objective=masked"])
    known = flatten(config)
    for name in MEASURING:
        assert not defines(name)
        section, _, key = name.partition(".")
        if name in known:  # the other samplers have the rest
            changed = replace(getattr(config, section), **{key: 3})
            assert identity(replace(config, **{section: changed})) == identity(config)
