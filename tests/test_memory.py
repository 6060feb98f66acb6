"""Closed formulas of memory against the bytes of the tensors that really are alive."""

from contextlib import nullcontext
from dataclasses import replace
from functools import partial
from itertools import count, product

import pytest
import torch
from conftest import tiny
from hypothesis import Phase, assume, given, settings
from hypothesis import strategies as st

from eltlab.build import build_backbone
from eltlab.compute import network
from eltlab.elastic import Elastic
from eltlab.live import LiveBytes
from eltlab.memory import (
    Pass,
    inference_memory,
    layer_kept,
    scales_kept,
    static_inference_bytes,
    static_training_bytes,
    training_memory,
)
from eltlab.training.ema import ema_copy
from eltlab.training.module import LoopedModule

# What fails is told as it was drawn: shrinking a training run takes longer than it helps.
drawn = partial(settings, phases=(Phase.explicit, Phase.generate))

PRECISIONS = ("32-true", "bf16-mixed")
KINDS = [("masked", block) for block in ("post_norm", "pre_norm")] + [
    ("diffusion", block) for block in ("post_norm", "pre_norm", "adaln", "film")
]
SWITCHES = ("loop_embedding", "inject_input", "residual_scale", "exclusive_attention")


def overrides(objective, block, width, heads, mlp, layers, grid, patch, channels, **keys):
    """Of a network: layers are those of the prelude, the loop and the coda, then the loop count."""
    prelude, looped, coda, loops = layers
    return [
        *("data=images", "data.root=nowhere", "data.classes=10", f"data.channels={channels}"),
        *(f"data.size={grid * patch}", f"data.patch={patch}", f"objective={objective}"),
        *(f"model.block={block}", f"model.width={width}", f"model.heads={heads}"),
        *(f"model.mlp_width={mlp}", f"model.prelude={prelude}", f"model.coda={coda}"),
        *(f"model.depth={prelude + looped * loops + coda}", f"loops={loops}"),
        *(f"{key.replace('__', '.')}={value}" for key, value in keys.items()),
    ]


LAYERS = st.tuples(
    st.sampled_from([0, 0, 1]),
    st.integers(1, 2),
    st.sampled_from([0, 0, 1]),
    st.sampled_from([1, 2, 4]),
)
ANATOMY = {f"model__{key}": st.booleans() for key in SWITCHES}


@st.composite
def small(draw):
    """A network of any kind, too small to be of use: for what is exact."""
    keys = {key: draw(values) for key, values in ANATOMY.items()}
    heads = draw(st.integers(1, 3))
    sizes = (4 * heads * draw(st.integers(1, 4)), heads, draw(st.integers(1, 40)))
    shape = (draw(st.integers(2, 4)), draw(st.integers(1, 3)), draw(st.sampled_from([1, 3])))
    kind = draw(st.sampled_from(KINDS))
    return tiny(*overrides(*kind, *sizes, draw(LAYERS), *shape, **keys))


@st.composite
def runs(draw):
    """A run whose activations are not small beside its weights, and its precision."""
    keys = {key: draw(values) for key, values in ANATOMY.items()}
    width, heads = draw(st.sampled_from([64, 128, 192, 256])), draw(st.sampled_from([2, 4]))
    grid, batch = draw(st.sampled_from([4, 8, 16])), draw(st.sampled_from([4, 8, 16, 32]))
    prelude, looped, coda, loops = layers = draw(LAYERS)
    rows = batch * grid**2
    assume(2 * width <= rows and rows * width * (prelude + looped * loops + coda) <= 800_000)
    kind = draw(st.sampled_from(KINDS))
    sizes = (width, heads, width * draw(st.sampled_from([2, 4])))
    patch, channels = draw(st.sampled_from([1, 2])), draw(st.sampled_from([1, 3]))
    supervision = draw(st.sampled_from(["final", "ilsd", "deep", "random_depth"]))
    config = tiny(
        *overrides(*kind, *sizes, layers, grid, patch, channels, **keys),
        f"batch_size={batch}",
        f"supervision={supervision}",
        f"data.codebook={draw(st.sampled_from([16, 64, 256, 1024]))}",
        f"model.dropout={draw(st.sampled_from([0.0, 0.1]))}",
        f"trainer.recompute={draw(st.booleans())}",
        f"sampler.guidance={draw(st.sampled_from([1, 3]))}",
        "sampler.steps=2",
        "budget.images=64000",
    )
    return config, draw(st.sampled_from(PRECISIONS))


def autocast(precision):
    half = precision == "bf16-mixed"
    return torch.autocast("cpu", dtype=torch.bfloat16) if half else nullcontext()


def a_batch(config):
    size, data = config.batch_size, config.data
    labels = torch.randint(data.classes, (size,))
    if config.objective.INPUTS == "tokens":
        return torch.randint(data.codebook, (size, data.tokens)), labels
    return torch.randn(size, data.channels, data.size, data.size), labels


class Run:
    """A module that is stepped as Lightning does: forward, gradients away, backward, optimizer."""

    def __init__(self, config, precision):
        self.config, self.precision = config, precision
        self.module = LoopedModule(config)
        self.module.backbone.stack.recompute = config.trainer.recompute
        self.optimizer = self.module.configure_optimizers()

    def loss(self):
        with autocast(self.precision):
            return self.module.training_step(a_batch(self.config), 0)

    def step(self):
        loss = self.loss()
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        self.module.configure_gradient_clipping(self.optimizer)
        self.optimizer.step()

    def deepest(self):
        """Goes on at a step that runs all loops."""
        exits = self.module.supervision.exits
        self.module.step = next(n for n in count(1) if max(exits(n)) == self.config.loops)


def measured_training(config, precision):
    """Bytes that the second step needs beside what the first one left."""
    run = Run(config, precision)
    with LiveBytes() as live:
        run.step()
        static = live.current
        run.deepest()
        live.restart()
        run.step()
    return live.peak - static


class Codes:
    """Stands in for the tokenizer, whose decoding is no part of the pass."""

    def decode(self, ids):
        return torch.zeros(len(ids), 1, 1, 1, dtype=torch.uint8)


def measured_inference(config, precision):
    config.trainer.precision = precision
    model = Elastic(ema_copy(build_backbone(config)), config, Codes())
    with LiveBytes() as live:
        model.draw(torch.zeros(config.batch_size, dtype=torch.long), None, 0)
    return live.peak


# --- static ---------------------------------------------------------------------------------------


def nbytes(tensors):
    return sum(tensor.nbytes for tensor in tensors)


@drawn(max_examples=40)
@given(small())
def test_static_bytes_are_those_of_a_step(config):
    run = Run(config, "32-true")
    run.step()
    backbone, ema = run.module.backbone, run.module.ema
    state = [value for state in run.optimizer.state.values() for value in state.values()]
    averaged = nbytes([*ema.parameters(), *ema.buffers()])
    gradients = [parameter.grad for parameter in backbone.parameters()]
    trained = nbytes([*backbone.parameters(), *backbone.buffers(), *gradients, *state])
    assert static_training_bytes(network(config)) == trained + averaged
    assert static_inference_bytes(network(config)) == averaged
    assert training_memory(config, "cpu", "32-true").static == trained + averaged
    assert inference_memory(config, "cpu", "32-true").static == averaged


# --- activations ----------------------------------------------------------------------------------


def saved_bytes(config, precision):
    """Bytes of the storages that autograd keeps of a step's forward, parameters left out."""
    run = Run(config, precision)
    own = {parameter.untyped_storage()._cdata for parameter in run.module.backbone.parameters()}
    saved = {}

    def pack(tensor):
        saved[tensor.untyped_storage()._cdata] = tensor.untyped_storage()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        loss = run.loss()
    assert loss.grad_fn is not None
    return sum(storage.nbytes() for key, storage in saved.items() if key not in own)


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize(("objective", "block"), KINDS)
def test_a_layer_keeps_what_the_formula_says(objective, block, precision):
    """Exactly: two loops more keep twice the layers more."""
    for dropout, exclusive in product((0.0, 0.1), (False, True)):
        few, many = (
            tiny(
                *overrides(objective, block, 24, 2, 40, (0, 2, 0, loops), 4, 2, 1),
                *("supervision=final", f"model.dropout={dropout}"),
                f"model.exclusive_attention={exclusive}",
            )
            for loops in (2, 4)
        )
        net = network(many)
        step = Pass(net, many.batch_size, 4, precision != "32-true", False, training=True)
        kept = step.rows * layer_kept(step) + step.samples * scales_kept(step)
        more = saved_bytes(many, precision) - saved_bytes(few, precision)
        assert more == 4 * kept, (dropout, exclusive)


@drawn(max_examples=40)
@given(runs())
def test_training_peaks_where_the_formula_says(run):
    assert training_memory(*run_on_cpu(run)).activations == pytest.approx(
        measured_training(*run), rel=0.15
    )


@drawn(max_examples=40)
@given(runs())
def test_sampling_peaks_where_the_formula_says(run):
    assert inference_memory(*run_on_cpu(run)).activations == pytest.approx(
        measured_inference(*run), rel=0.15
    )


def run_on_cpu(run):
    config, precision = run
    return config, "cpu", precision


WIDE = overrides("diffusion", "pre_norm", 64, 2, 256, (0, 1, 0, 4), 8, 1, 1)


def both(config, precision="32-true"):
    """Measured and closed activations of a training step."""
    formula = training_memory(config, "cpu", precision).activations
    return measured_training(config, precision), formula


CODES = ("data.codebook=1024", "model.dropout=0", "budget.images=64000")
DOMINANT = {
    "exits": (("masked", "post_norm", 32, 2, 64, (0, 1, 0, 4), 8, 1, 1), "supervision=deep"),
    "distillation": (("masked", "pre_norm", 32, 2, 64, (0, 1, 0, 2), 8, 1, 1), "supervision=ilsd"),
    "codas": (("diffusion", "film", 64, 2, 256, (0, 1, 2, 4), 8, 1, 1), "supervision=deep"),
    "copies": (("diffusion", "pre_norm", 256, 2, 1024, (0, 2, 0, 1), 2, 1, 1), "batch_size=4"),
}


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("term", DOMINANT)
def test_training_peaks_where_one_term_dominates(term, precision):
    shape, choice = DOMINANT[term]
    measured, formula = both(tiny(*overrides(*shape), *CODES, choice), precision)
    assert formula == pytest.approx(measured, rel=0.1)


def test_recompute_lowers_the_peak():
    kept, again = (both(tiny(*WIDE, f"trainer.recompute={flag}")) for flag in ("false", "true"))
    assert all(2 * after < before for before, after in zip(kept, again, strict=True))


def test_bf16_halves_what_is_no_state_and_nothing_static():
    full, half = (both(tiny(*WIDE), precision) for precision in PRECISIONS)
    assert all(0.5 < b / a < 0.65 for a, b in zip(full, half, strict=True))
    statics = {training_memory(tiny(*WIDE), "cpu", precision).static for precision in PRECISIONS}
    assert len(statics) == 1


def test_guidance_doubles_the_samples_of_a_pass():
    once, twice = (tiny(*WIDE, f"sampler.guidance={scale}") for scale in (1, 3))
    for memory in (measured_inference, lambda *args: inference_memory(args[0], "cpu", args[1])[1]):
        assert 1.8 < memory(twice, "32-true") / memory(once, "32-true") < 2.1


def test_loops_keep_activations_and_no_weights():
    once, often = (
        tiny(*overrides("masked", "post_norm", 64, 2, 256, (0, 1, 0, loops), 8, 1, 1))
        for loops in (1, 4)
    )
    a, b = (training_memory(config, "cpu", "32-true") for config in (once, often))
    assert a.static == b.static and b.activations > 2 * a.activations
    assert b.total == b.static + b.activations


def test_dropout_is_a_byte_a_number_on_cuda_and_the_squared_attention_on_the_cpu():
    """By torch's documentation of its kernels: no GPU is asked."""
    plain, dropped = (
        Pass(network(tiny(f"model.dropout={share}")), 8, 4, False, True, training=True)
        for share in (0, 0.1)
    )
    assert layer_kept(dropped) - layer_kept(plain) == 2 * plain.net.width
    cpu = [
        layer_kept(Pass(replace(dropped.net, tokens=n), 8, 4, False, False, training=True))
        for n in (16, 17)
    ]
    assert cpu[1] - cpu[0] == 3 * 4 * dropped.net.heads
    assert layer_kept(replace(plain, cuda=False)) == layer_kept(plain)


# --- live bytes -----------------------------------------------------------------------------------


def test_live_bytes_follow_storages_and_not_tensors():
    weight = torch.ones(10, requires_grad=True)
    with LiveBytes() as live:
        a = torch.ones(100)
        view, detached = a[:50].view(5, 10), a.detach()
        a.add_(1)
        assert live.current == live.peak == 400
        b = a * 2
        del a
        assert live.current == 800  # the views hold it
        del view, detached
        assert (live.current, live.peak) == (400, 800)
        weight.data.add_(1)
        assert live.current == 400  # it was there before
        live.restart()
        assert live.peak == 400
        (weight * 2).sum().backward()
        assert live.current == 440 < live.peak  # the gradient, and what led to it
        weight.grad = None
        del b
    assert live.current == 0
    torch.ones(1000)
    assert live.peak < 4000
