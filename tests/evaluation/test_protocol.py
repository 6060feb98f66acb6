"""The protocol of a row: what changes its id and what does not, and the clips that it describes."""

import json
from dataclasses import fields, replace
from pathlib import Path

import pytest
from support.clip_files import pan, write
from support.encoded_sets import tokenizer_weights
from support.real_videos import real_video
from support.sprite_runs import SMALL
from support.tiny_run import tiny

from eltlab.config.identity import MEASURING
from eltlab.evaluation.encode_set import encode
from eltlab.evaluation.protocol import protocol_id, sampling_protocol
from eltlab.runs import row_files
from eltlab.runs.compose_config import compose, compose_encode
from eltlab.runs.run_folder import Run
from eltlab.training.fit import fit as run_fit

GIVEN = {"samples": 100, "precision": "32-true", "extractor": "a-1", "reference": "b-2"}
OTHER = {"samples": 101, "precision": "bf16-mixed", "extractor": "a-2", "reference": "b-3"}


def changed(value):
    if isinstance(value, bool):
        return not value
    return value + 1 if isinstance(value, int | float) else value + "-other"


@pytest.mark.parametrize("objective", ["masked", "diffusion"])
def test_protocol_id_changes_with_every_field_but_the_measuring_keys(objective):
    sampler = tiny(f"objective={objective}").sampler
    ids = [protocol_id(sampling_protocol(sampler, **GIVEN))]
    for field in fields(sampler):
        value = 1 if (before := getattr(sampler, field.name)) is None else changed(before)
        found = protocol_id(sampling_protocol(replace(sampler, **{field.name: value}), **GIVEN))
        if f"sampler.{field.name}" in (*MEASURING, "sampler.batch"):
            assert found == ids[0]
        else:
            ids.append(found)
    for name, value in OTHER.items():
        ids.append(protocol_id(sampling_protocol(sampler, **{**GIVEN, name: value})))
    assert len(ids) >= 6 and len(set(ids)) == len(ids)


def test_protocol_id_does_not_depend_on_the_order_of_its_fields():
    protocol = sampling_protocol(tiny().sampler, **GIVEN)
    assert protocol_id(protocol) == protocol_id(dict(reversed(protocol.items())))


def write_videos(root: Path) -> None:
    for n, path in enumerate(f"{split}/{label}/0.avi" for split in ("train", "test") for label in "ab"):
        write(root / path, pan(80, seed=n))


def link_real_videos(root: Path) -> None:
    for split in ("train", "test"):
        for label, name in (("street", "bikes.mp4"), ("meadow", "bigbuckbunny.mp4")):
            (root / split / label).mkdir(parents=True)
            (root / split / label / name).symlink_to(real_video(name))


@pytest.mark.parametrize(
    "make_videos",
    [
        pytest.param(write_videos, marks=pytest.mark.integration, id="made"),
        pytest.param(link_real_videos, marks=pytest.mark.slow, id="real"),
    ],
)
def test_encoded_clips_have_the_protocol_of_their_source(make_videos, tmp_path):
    """Videos cut at stride 2: pixels and tokens of their frames have the same protocol."""
    make_videos(tmp_path / "videos")
    cut = "data.frames=4 data.stride=2 data.size=16 data.workers=0"
    clips = f"data=clips data.root={tmp_path / 'videos'} {cut}"
    out, small = tmp_path / "set", [key for key in SMALL if not key.startswith("metrics.")]
    tokenizer = ["tokenizer=kmeans", "tokenizer.base=taesd", "tokenizer.codes=8", "accelerator=cpu"]
    weights = f"tokenizer.weights={tokenizer_weights(tmp_path / 'weights') / 'taesd'}"
    encode(compose_encode([*clips.split(), *tokenizer, weights, f"out={out}", "evaluate=false"]), out)
    measured = ["metrics.extractor=classifier", "metrics.samples=8", f"runs_dir={tmp_path}"]
    plain = [key for key in small if "codebook" not in key]
    found = []
    for keys in (
        [*clips.split(), "data.patch=4", *small],
        [*clips.split(), "data.patch=4", *small, "data.in_memory=false", "sampler.steps=2"],
        ["data=tokens", f"data.root={out}", "data.workers=0", *plain],
    ):
        config = compose([*keys, *measured, "evaluate_loops=[2]"])
        run_fit(config)
        rows = [row for row in row_files.read_rows(Run.of(config).rows) if row["kind"] == "eval"]
        found.append(json.loads(rows[-1]["protocol_text"]))
    assert {each["clips"] for each in found} == {"4 frames, stride 2, 16 pixels, split 1"}
    assert len({each["reference"] for each in found}) == 1
