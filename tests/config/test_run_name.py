"""The default names of runs: they say what differs from the defaults, and nothing else."""

import pytest
from support.tiny_run import tiny

from eltlab.config.identity import identity
from eltlab.config.run_name import MOST
from eltlab.runs.compose_config import compose

BASE = "digits-masked-elt_tiny"


@pytest.mark.parametrize(
    ("overrides", "name"),
    [
        ("", f"{BASE}-2x4-ilsd"),
        ("optim.lr=3e-3", f"{BASE}-2x4-ilsd-lr0.003"),
        ("model.width=96", f"{BASE}-2x4-ilsd-width96"),
        ("batch_size=32 model.width=96", f"{BASE}-2x4-ilsd-width96-batch_size32"),
        ("optim.betas=[0.9,0.95] optim.schedule=cosine", f"{BASE}-2x4-ilsd-betas_0.9_0.95-cosine"),
        ("objective.label_smoothing=0 data.flip=true", f"{BASE}-2x4-ilsd-label_smoothing0.0-flip"),
        # Said by the first parts of the name.
        ("loops=2 unique_layers=3", f"{BASE}-3x2-ilsd"),
        ("model.depth=4", f"{BASE}-1x4-ilsd"),
        ("model.prelude=1 model.coda=1 model.depth=6", f"{BASE}-1x4-ilsd-prelude1-coda1"),
        # A run of another seed is another folder under the name; where and how a run is measured is no name.
        ("seed=3 sampler.guidance=2 metrics.samples=50 trainer.grids=0", f"{BASE}-2x4-ilsd"),
        ("data.workers=0", f"{BASE}-2x4-ilsd"),
        # A budget is in whole batches of images, whatever it was given in.
        ("budget.images=4000", f"{BASE}-2x4-ilsd-images4096"),
        ("budget.train_flops=1e12", f"{BASE}-2x4-ilsd-images"),
        # Groups.
        ("experiment=demo", "digits-diffusion-elt_tiny-2x4-ilsd-demo"),
        ("experiment=demo optim.lr=0.002", "digits-diffusion-elt_tiny-2x4-ilsd-demo-lr0.002"),
        ("experiment=anatomy/loop_embedding", f"{BASE}-2x4-ilsd-loop_embedding"),
        ("optim=flow", f"{BASE}-2x4-ilsd-flow"),
        (
            "data=ucf101 data.root=x data.split=2 objective=diffusion",
            "clips-diffusion-elt_tiny-2x4-ilsd-ucf101-x-split2",
        ),
        # The folder of a set, unless the first part has its name.
        (
            "data=imagenette128_latents data.root=sets/A data.encoding=abc objective=diffusion",
            "imagenette128_latents-diffusion-elt_tiny-2x4-ilsd-A-abc",
        ),
        (
            "data=imagenette128_latents data.root=x/imagenette128_latents data.encoding=abc objective=flow",
            "imagenette128_latents-flow-elt_tiny-2x4-ilsd-abc",
        ),
        ("data=fashion_mnist data.root=here", "fashion_mnist-masked-elt_tiny-2x4-ilsd"),
    ],
)
def test_a_name_says_what_differs_from_the_defaults(overrides: str, name: str) -> None:
    found = str(compose(overrides.split()).name)
    assert found == name or (name.endswith("-images") and found.startswith(name))


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("", "optim.lr=1e-3"),
        ("", "budget.images=192000"),
        ("", "optim=masked"),
        ("", "model.block=post_norm"),  # null stands for it
        ("model.width=96", "model.width=96 model.cond_width=96"),
        ("loops=1", "loops=1 supervision.min_loops=2 model.inject_input=true"),  # neither has an effect
        ("experiment=demo", "experiment=demo batch_size=32"),
        ("objective=diffusion optim.lr=0.01", "optim.lr=0.01 objective=diffusion"),
        ("optim.lr=0.01 batch_size=64", "batch_size=64 optim.lr=0.01"),
    ],
)
def test_equal_runs_have_equal_names(one: str, other: str) -> None:
    first, second = compose(one.split()), compose(other.split())
    assert identity(first) == identity(second) and first.name == second.name


def test_what_another_key_decides_is_named_only_if_it_differs() -> None:
    assert str(tiny("objective=diffusion", "model.cond_width=16").name) == tiny("objective=diffusion").name
    assert "-cond_width32" in str(tiny("objective=diffusion", "model.cond_width=32").name)


def test_a_given_name_is_kept() -> None:
    assert compose(["name=mine", "optim.lr=3e-3"]).name == "mine"


def test_a_long_name_ends_in_a_digest_of_all_of_it() -> None:
    keys = ["objective=diffusion", "objective.logsnr_min=-14.123456", "objective.logsnr_max=14.123456"]
    keys += ["objective.bias=-1.123456", "objective.shift=1.123456", "optim.weight_decay=0.123456"]
    names = [str(tiny(*keys, f"optim.clip={clip}").name) for clip in (2.5, 3.5)]
    assert all(len(name) == MOST for name in names)
    assert names[0] != names[1] and names[0][:-6] == names[1][:-6]
