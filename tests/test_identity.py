"""The ids of runs and protocols are stable: committed ones are found again, and a new key changes none."""

import json
from collections import defaultdict
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest
from omegaconf import OmegaConf

from eltlab.config.identity import defines, identity
from eltlab.config.keys import key, stable_dict
from eltlab.config.parsing import to_config, typed
from eltlab.config.schema import Config, DataConfig, FinalConfig, MaskedSamplerConfig
from eltlab.evaluation.protocol import protocol_id, sampling_protocol
from eltlab.runs.compose_config import compose

ROWS = sorted((Path(__file__).parents[1] / "analysis" / "data").glob("*.jsonl"))

# Computed by version 0.1.0. If one of these changes, runs that users have trained are not found again.
IDS = {
    "": "de960ecfad",
    "objective=diffusion": "e63f27a36f",
    "objective=flow": "02e00bc64d",
    "supervision=final": "5327ac47ee",
    "supervision=deep": "52ebf59353",
    "supervision=random_depth supervision.law=poisson supervision.mean=2": "209181e4ec",
    "loops=1": "b49b0add33",
    "model=elt_b loops=12": "37f7451540",
    "experiment=demo": "7e9f75813e",
    "experiment=anatomy/prelude_coda": "35f7265765",
    "experiment=anatomy/inject_input": "8d8b6c054d",
    "experiment=paper/elt_dit_8x4": "b1227ae964",
    "experiment=paper/elt_l_8x3": "e182e8bf0e",
    "experiment=paper/elt_video_6x4": "6f7d3d8404",
    "data=sprites": "889edfbcb4",
    "data=cifar10 objective=flow loops=2 seed=1": "f6a57e58ed",
    "data=fashion_mnist supervision.weight.shape=cosine model.dropout=0.1": "542ae2e9c8",
    "budget.train_flops=1e12": "f07d68bca8",
}

# Written before version 0.1.0, when fewer keys existed: their ids cannot be computed from their rows.
OLDER = {
    *("anytime_diffusion", "anytime_masked", "cifar", "schedules"),
    *("supervision_digits", "supervision_fashion_mnist"),
}


@pytest.mark.parametrize("overrides", IDS)
def test_ids_are_those_of_the_first_version(overrides: str) -> None:
    assert identity(compose(overrides.split())) == IDS[overrides]


def config_of(row: dict) -> Config:
    """The configuration that a row recorded, without resolving it again."""
    nested: dict = {}
    for name, value in row["cfg"].items():
        *sections, last = name.split(".")
        inner = nested
        for section in sections:
            inner = inner.setdefault(section, {})
        inner[last] = value
    return to_config(typed(OmegaConf.create(nested)))


@pytest.mark.parametrize("path", ROWS, ids=lambda path: path.stem)
def test_ids_of_committed_rows_are_found_again(path: Path) -> None:
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    for row in rows:
        protocol = json.loads(row["protocol_text"])
        assert protocol_id(protocol) == row["protocol"]
    configs = defaultdict(set)
    for row in rows:
        if row["kind"] == "eval":
            config = config_of(row)
            configs[row["run"].rpartition("/")[2]].add(identity(config))
            drawn = sampling_protocol(config.sampler, row["samples"], "", "", "")
            stored = json.loads(row["protocol_text"])
            own = {name: value for name, value in stored.items() if name.startswith("sampler.")}
            assert own == {n: value for n, value in drawn.items() if n.startswith("sampler.")}
    if path.stem not in OLDER:
        assert all(found == {run} for run, found in configs.items())


@dataclass
class LaterData(DataConfig):
    gamma: float = key(1.0, "a later key", since="9.9")


@dataclass
class LaterSection:
    power: int = key(2, "a later key of a later section", since="9.9")


@dataclass
class LaterSupervision(FinalConfig):
    later: LaterSection = field(default_factory=LaterSection)


@dataclass
class LaterSampler(MaskedSamplerConfig):
    order: str = key("random", "a later key", since="9.9")


def test_a_later_key_changes_no_id_at_its_default() -> None:
    config = compose(["supervision=final"])
    later = replace(
        config,
        data=LaterData(**vars(config.data)),
        supervision=LaterSupervision(**vars(config.supervision)),
        sampler=LaterSampler(**vars(config.sampler)),
    )
    assert identity(later) == identity(config)

    def protocol(of: Config) -> str:
        return protocol_id(sampling_protocol(of.sampler, 1000, "32-true", "extractor", "reference"))

    assert protocol(later) == protocol(config)
    later.data.gamma = 2.0
    assert identity(later) != identity(config)
    later.data.gamma = 1.0
    later.supervision.later.power = 3
    assert identity(later) != identity(config)
    later.sampler.order = "raster"
    assert protocol(later) != protocol(config)


def test_keys_of_clips_and_encoded_sets_are_not_part_of_a_run_on_images() -> None:
    found = stable_dict(compose([]).data)
    assert not {"kind", "factor", "encoding", "stride", "split", "frame_patch"} & set(found)
    assert {"frames", "size", "patch"} <= set(found)
    assert defines("data.stride") and not defines("data.root")
