"""Samples at constant and changing loop counts, under halting, of classes and with guidance."""

import pytest
import torch
from support.generators import generator
from support.measured_runs import halfway
from support.networks import perturbed
from support.tiny_run import tiny
from support.untrained_samplers import untrained
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from eltlab.common.errors import UserError
from eltlab.config.sampling_schedules import loop_schedule
from eltlab.data.tokenizers.patch_codebook import PatchCodebook
from eltlab.generation.anytime_sampler import AnytimeSampler, pad_rows
from eltlab.model.backbone import build_backbone
from eltlab.model.patches import Patches
from eltlab.runs.load_model import load


@pytest.mark.parametrize("loops", [2, [4, 3, 1, 1]])
def test_every_sampling_step_runs_its_own_loop_count(loops):
    model = untrained()
    drawn = model.sample_batch(torch.tensor([1, 2]), loops, seed=0, track=True)
    counts = loop_schedule(loops, 4)
    assert [len(step) for step in drawn.updates] == counts
    assert drawn.depths == [{count: 1.0} for count in counts]


def sampler_of_untrained(*overrides: str) -> AnytimeSampler:
    """An untrained masked model with made-up codes."""
    config = tiny("model.block=pre_norm", *overrides)
    codes = torch.rand(16, 4, generator=generator()) * 2 - 1
    net = perturbed(build_backbone(config), scale=0.3)
    return AnytimeSampler(net.eval(), config, PatchCodebook(codes, Patches((1, 8, 8), 2)))


def test_class_label_and_guidance_reach_the_samples():
    model = sampler_of_untrained()

    def drawn(label, guidance):
        return model.sample([label] * 4, guidance=guidance, seed=1)

    assert not torch.equal(drawn(1, 1.0), drawn(2, 1.0))
    assert not torch.equal(drawn(1, 1.0), drawn(1, 6.0))
    assert torch.equal(drawn(1, 0.0), drawn(2, 0.0))  # unconditional
    assert torch.equal(drawn(1, 0.0), drawn(10, 1.0))  # the null label


@pytest.mark.parametrize("label", [4, torch.tensor(4)], ids=["int", "tensor"])
def test_a_single_class_is_refused_with_the_list_to_give(label):
    with pytest.raises(UserError) as refusal:
        sampler_of_untrained().sample(label)
    assert str(refusal.value) == (
        "labels=4: give a list of classes, e.g. sample([4]) for one image of class 4"
    )


def test_a_pass_halts_when_its_update_falls_below_the_threshold(measured_run):
    model = load(measured_run)
    labels, threshold = torch.arange(16) % 10, halfway(model)
    drawn = model.sample_batch(labels, 4, seed=0, changes={"halting": threshold}, track=True)
    counts = [loops for [loops] in drawn.depths]
    for spent, updates in zip(counts, drawn.updates, strict=True):
        assert len(updates) == spent
        assert all(update >= threshold for update in updates[:-1])
        assert spent == 4 or updates[-1] < threshold
    # A schedule of these counts draws the same images.
    counted = model.sample_batch(labels, counts, seed=0)
    assert torch.equal(counted.images, drawn.images)


@pytest.mark.parametrize(("threshold", "count"), [(1e9, 1), (1e-9, 4)])
def test_a_threshold_out_of_reach_is_a_constant_count(measured_run, threshold, count):
    model = load(measured_run)
    halted = model.sample_batch(torch.tensor([3, 7]), 4, seed=0, changes={"halting": threshold})
    constant = model.sample_batch(torch.tensor([3, 7]), count, seed=0)
    assert halted.depths == [{count: 1.0}] * 5 and torch.equal(halted.images, constant.images)


def test_shares_of_loops_are_of_images_not_of_batches(measured_run):
    """40 images in batches of 16, 16 and 8."""
    model = load(measured_run)
    model.config.sampler.batch = 16
    drawn = model.sample_all(torch.arange(40) % 10, "4to1", 0, "test")
    assert drawn.depths == [{n: 1.0} for n in (4, 3, 3, 2, 1)] and len(drawn.images) == 40
    calls = iter([[{1: 1.0}] * 5, [{1: 1.0}] * 5, [{4: 1.0}] * 5])
    real = model.sample_batch

    def counted(*args, **given):
        return real(*args, **given)._replace(depths=next(calls))

    model.sample_batch = counted  # type: ignore[method-assign]
    assert model.sample_all(torch.arange(40) % 10, 4, 0, "test").depths == [{1: 0.8, 4: 0.2}] * 5


@pytest.mark.integration
@pytest.mark.parametrize("guidance", [1, 2.5])
@pytest.mark.parametrize("build", [untrained, sampler_of_untrained], ids=["diffusion", "masked"])
def test_a_sample_does_not_depend_on_how_many_are_drawn_at_a_time(build, guidance):
    model = build(f"sampler.guidance={guidance}", "sampler.steps=6")
    labels, drawn = torch.arange(500) % 10, []
    for batch in (1, 7, 500):
        model.config.sampler.batch = batch
        taken = labels if batch > 1 else labels[:40]  # one at a time takes long
        drawn.append(model.sample_all(taken, None, 3, "test").images)
    one, seven, whole = drawn
    assert torch.equal(seven, whole) and torch.equal(one, whole[:40])
    assert len(whole.unique(dim=0)) > 400  # the samples differ from each other


def test_batches_on_a_cpu_are_padded_to_a_multiple_of_four():
    rows = [pad_rows(count, torch.device("cpu")) for count in (0, 1, 3, 7, 8)]
    assert rows == [[], [0] * 4, [0, 1, 2, 0], [*range(7), 0], [*range(8)]]
    assert pad_rows(7, torch.device("cuda")) == [*range(7)]


class Grey:
    """A tokenizer without codes, which FakeTensorMode would have to move."""

    def to(self, device):
        return self

    def decode(self, ids):
        return ids.new_zeros(len(ids), 1, 8, 8, dtype=torch.uint8)


class HostWork(TorchDispatchMode):
    """Counts the operations of the CPU, the copies to the device, and the draws of torch's generators."""

    def __init__(self) -> None:
        super().__init__()
        self.host = self.copies = self.drawn = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        out = function(*args, **(kwargs or {}))
        before, after = (
            {leaf.device.type for leaf in tree_leaves(values) if isinstance(leaf, torch.Tensor)}
            for values in ((args, kwargs), out)
        )
        self.host += after == {"cpu"}
        self.copies += "cpu" in before and "cuda" in after
        self.drawn += any(kind in function.name() for kind in ("rand", "normal", "uniform", "bernoulli"))
        return out


@pytest.mark.integration
@pytest.mark.parametrize("name", ["ddpm", "ddim", "euler", "heun", "maskgit"])
def test_a_sampling_step_draws_and_copies_nothing_on_the_host(name):
    """On a CUDA device that FakeTensorMode makes up: more steps mean no more work for the host."""
    objective = {"maskgit": "masked", "euler": "flow", "heun": "flow"}.get(name, "diffusion")
    counted = []
    for steps in (2, 9):
        config = tiny(
            f"objective={objective}", f"sampler.name={name}", f"sampler.steps={steps}", "sampler.guidance=2"
        )
        with FakeTensorMode():
            net = build_backbone(config).eval()
            for part in net.modules():  # .to("cuda") cannot swap fake parameters
                for held in (part._parameters, part._buffers):
                    values = {key: value for key, value in held.items() if value is not None}
                    held |= {key: torch.empty_like(v, device="cuda") for key, v in values.items()}
            model = AnytimeSampler(net, config, Grey())
            labels = torch.arange(8)
            with HostWork() as work:
                images = model.sample_batch(labels, None, 0).images
            assert images.shape == (8, 1, 8, 8)
        counted.append((work.host, work.copies, work.drawn))
    assert counted[0] == counted[1] and work.copies > 0 and work.drawn == 0
