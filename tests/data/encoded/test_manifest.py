"""The manifest of an encoded set: its id, and the keys of a run that it decides."""

import pytest
from safetensors.torch import load_file
from support.encoded_sets import make, on
from support.errors import fails
from support.tiny_run import tiny

from eltlab import fit
from eltlab.config.identity import identity
from eltlab.data.build import build_data
from eltlab.data.encoded.manifest import read_manifest


def test_a_set_without_flips_cannot_be_mirrored(photo_folder, weights_folder, tmp_path) -> None:
    manifest = make(photo_folder, weights_folder, tmp_path / "set", "flips=false", tokenizer="taesd")
    assert load_file(tmp_path / "set/train-00000.safetensors").keys() == {"mean", "labels"}
    assert not manifest.encoding.variance
    assert "was encoded with flips=false" in fails(on, tmp_path / "set", "data.flip=true")
    assert build_data(on(tmp_path / "set")).held_out(4)[0].shape == (4, 2, 8, 8)


def test_the_id_depends_on_the_content_and_not_on_the_folder(latent_set, copied_set) -> None:
    assert read_manifest(copied_set).id == read_manifest(latent_set).id
    assert identity(on(copied_set)) == identity(on(latent_set))


def test_a_manifest_that_was_changed_is_refused(copied_set) -> None:
    path = copied_set / "manifest.json"
    text = path.read_text()
    path.write_text(text.replace('"factor": 2', '"factor": 4'))
    assert "changed by hand or damaged" in fails(on, copied_set)
    path.write_text(text[:100])
    assert "not a manifest of this version" in fails(on, copied_set)
    path.unlink()
    assert "run the same encode command to finish it" in fails(on, copied_set)
    assert "give a folder that encode wrote" in fails(on, copied_set.parent)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["data=tokens"], "holds latents; choose data=latents"),
        (["data=imagenette128_latents"], "data.classes=10: the set in data.root="),
        (["objective=masked"], "holds latents, and objective=masked corrupts tokens"),
        (["sampler.clip=true"], "latents, which have no bounds"),
        (["data.classes=4"], "data.classes=4: the set in data.root="),
        (["data.root=null"], "data.root is missing"),
        (["data.frames=4"], "data.frames=4: the set in data.root="),
        (["data.kind=pixels"], "write data=pixels"),
        (["data.encoding=123456789abc"], "another encoded set"),
    ],
)
def test_what_does_not_fit_the_set_is_refused(overrides, message, latent_set) -> None:
    def run() -> None:
        build_data(tiny(f"data.root={latent_set}", "data=latents", "objective=diffusion", *overrides))

    assert message in fails(run)


def test_fit_says_that_an_encoded_set_is_missing(tmp_path):
    keys = ["experiment=paper/elt_l_8x3", f"runs_dir={tmp_path}", "trainer.accelerator=cpu"]
    message = fails(fit.main, keys)
    assert message.startswith("data.root is missing: data=imagenet256_tokens needs the folder")
    assert not list(tmp_path.iterdir())
