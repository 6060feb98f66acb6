"""Which keys of the data apply to which kind of data."""

import pytest
from support.encoded_sets import on
from support.errors import fails
from support.tiny_run import tiny

from eltlab.common.errors import UserError
from eltlab.runs.compose_config import compose


def test_keys_of_clips_are_checked(clip_folder):
    clips = ["data=clips", f"data.root={clip_folder}"]
    assert "data.stride=0: must be at least 1" in fails(tiny, *clips, "data.stride=0")
    assert "data.split=4: choose one of 1, 2, 3" in fails(tiny, *clips, "data.split=4")
    assert "data.frames=1: data=clips holds clips" in fails(tiny, *clips, "data.frames=1")
    assert "data.root is missing: data=clips" in fails(tiny, "data=clips")
    assert "data.stride=2 applies to data=clips only" in fails(tiny, "data.stride=2")
    assert "data.split=3 applies to data=clips only" in fails(tiny, "data.split=3")
    assert "data.frames=4: data=digits holds images" in fails(tiny, "data.frames=4")


def test_images_have_no_keys_of_encoded_sets(token_set) -> None:
    assert "metrics.images=/x applies to encoded sets only" in fails(tiny, "metrics.images=/x")
    assert "data.encoding=abc applies to encoded sets only" in fails(tiny, "data.encoding=abc")
    assert "data.factor=2 applies to latents only" in fails(tiny, "data.factor=2")
    assert "data.factor=2 applies to latents only" in fails(
        lambda: on(token_set, "data.factor=2", kind="tokens")
    )


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ("metrics.extractor=inception", "holds clips; choose one of classifier, i3d"),
        ("data.frame_patch=3", "data.frame_patch=3 does not divide data.frames=8"),
        ("data.frames=4", "the clips of sprites have 8 frames. Remove it."),
        ("data.frames=1", "data=sprites holds clips; give at least 2"),
        ("data.size=32", "sprites is 64x64"),
        ("metrics.samples=10", "give at least two per class, 18"),
        ("data.stride=2", "data.stride=2 applies to data=clips only"),
        (
            "data.in_memory=false",
            "data.in_memory=false applies to sets of files only; data=sprites is",
        ),
    ],
)
def test_keys_that_do_not_apply_to_clips_are_refused(keys, message):
    with pytest.raises(UserError, match=message):
        compose(["data=sprites", "data.root=x", *keys.split()])


def test_keys_of_clips_are_refused_for_images():
    with pytest.raises(UserError, match="data=digits holds images; choose one of classifier, inception"):
        tiny("metrics.extractor=i3d")
    with pytest.raises(UserError, match=r"data.frames=4: data=digits holds images\. Remove"):
        tiny("data.frames=4")
