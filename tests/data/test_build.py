"""Training data are built with the requested tokenizer and mirrored as requested."""

import pytest
import torch
from support.encoded_sets import CPU, on
from support.errors import fails
from support.image_files import small

from eltlab.config.schema import DataConfig
from eltlab.data.build import build_data, split_for_tuning
from eltlab.data.images.image_set import ImageSet, to_uint8


@pytest.mark.parametrize("objective", ["diffusion", "masked"])
def test_data_flip_mirrors_about_half(image_folder, objective):
    parts = []
    for flip in ("false", "true"):
        config = small(image_folder, f"objective={objective}", f"data.flip={flip}")
        batches = build_data(config).batches(config, 0, torch.device("cpu"))
        parts.append(torch.cat([x.flatten(1) for x, _ in batches]))
    assert 30 < (parts[0] != parts[1]).any(dim=1).sum() < 80  # of 110


def test_the_codes_of_a_checkpoint_replace_those_that_were_fitted_here(image_folder):
    data = build_data(small(image_folder))
    codes = data.codebook.flip(0) + 1
    resumed = data.with_codebook(codes)
    assert torch.equal(resumed.codebook, codes) and not torch.equal(data.codebook, codes)
    assert torch.equal(resumed.tokenizer.encode(data.test.images[:2]), resumed.held_out(100)[0][:2])
    assert data.with_codebook(None) is data


def rows_of(images: torch.Tensor) -> set[bytes]:
    return {image.numpy().tobytes() for image in images}


@pytest.mark.parametrize("in_memory", [True, False], ids=["in memory", "streamed"])
def test_a_tuning_run_never_sees_the_tenth_that_it_is_measured_on(image_folder, in_memory):
    """Three classes of twelve training images: the tenth of each is held out, for every seed."""
    held = []
    for seed in (0, 1):
        more = ("objective=diffusion", "data.tuning=true", f"data.in_memory={str(in_memory).lower()}")
        config = small(image_folder, *more, f"seed={seed}")
        data, whole = build_data(config), build_data(small(image_folder, "objective=diffusion"))
        assert (len(data.train), len(data.test), len(whole.train)) == (33, 3, 36)
        trained = torch.cat([to_uint8(x) for x, _ in data.batches(config, 0, torch.device("cpu"))])
        images, labels = data.held_out(100)
        assert labels.tolist() == [0, 1, 2]
        tenth = whole.train.subset(None).images[torch.tensor([9, 21, 33])]
        assert torch.equal(images, tenth)
        assert len(rows_of(trained)) == 33 and not rows_of(trained) & rows_of(tenth)
        held.append(rows_of(images))
        assert data.train.origin == whole.train.origin  # so the run resumes, and can be evaluated
        assert [len(split) for split in data.images(config)] == [36, 12]
    assert held[0] == held[1]


def test_the_codebook_of_a_tuning_run_is_fitted_without_the_tenth(image_folder, monkeypatch):
    fitted = []
    monkeypatch.setattr("eltlab.data.build.fit_codebook", lambda train, *rest: fitted.append(train))
    build_data(small(image_folder, "data.tuning=true"))
    [train] = fitted
    whole = build_data(small(image_folder, "objective=diffusion")).train.subset(None)
    assert len(train) == 33
    tenth = whole.images[torch.tensor([9, 21, 33])]
    assert not rows_of(train.subset(None).images) & rows_of(tenth)


def test_a_tuning_run_of_an_encoded_set_leaves_the_tenth_out(latent_set):
    whole, data = (build_data(on(latent_set, f"data.tuning={tuning}")) for tuning in ("false", "true"))
    every = torch.arange(len(whole.train))
    held = torch.cat([every[whole.train.labels == label][9::10] for label in range(10)])
    kept = every[~torch.isin(every, held)]
    assert len(held) == len(data.test) and len(data.train) == len(kept) < len(every)
    for name, rows in data.train.tensors.items():
        expected = whole.train.tensors[name][kept]
        assert torch.equal(rows[torch.arange(len(kept))], expected)
        assert torch.equal(rows.load(CPU), expected)
        assert torch.equal(data.test.tensors[name].load(CPU), whole.train.tensors[name][held.sort().values])


def test_the_tenth_of_clips_is_the_end_of_each_class():
    """Neighbours may be windows of one video."""
    clips = ImageSet("clips/train", torch.zeros(41, 2, 1, 4, 4, dtype=torch.uint8), torch.arange(41) % 2)
    train, tenth = split_for_tuning(clips, DataConfig("clips", classes=2, frames=2))
    assert (len(train), len(tenth)) == (37, 4)
    images = ImageSet("digits/train", clips.images[:, 0], clips.labels)
    split = split_for_tuning(images, DataConfig("digits", classes=2))
    assert [len(part) for part in split] == [37, 4]


def test_a_set_without_ten_examples_of_a_class_cannot_be_tuned_on(image_folder):
    for label in "abc":
        for number in range(3, 12):
            (image_folder / f"train/{label}/{number}.png").unlink()
    message = fails(build_data, small(image_folder, "objective=diffusion", "data.tuning=true"))
    assert message.startswith("data.tuning=true holds every tenth example of a class back, and no class")
