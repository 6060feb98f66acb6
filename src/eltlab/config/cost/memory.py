"""Peak bytes of a training step and of a sampling step, as tables of named terms. Pure Python, no torch.

For each moment that can be the worst, a table names the tensors that are alive and gives their bytes;
the peak is the largest sum. They are not measured, because a plan must not load torch, and the GPU that
a run is planned for is rarely in the machine that plans it.

Static bytes (weights, gradients, optimizer, averages) are exact. Activations are a model, read off
torch's ops, of what autograd keeps and of what else is alive. Tests require it to be within 15 % of the
live tensors (training/live_memory.py). It ignores smaller terms, workspaces of kernels, the allocator's
slack, the CUDA context, data set, tokenizer and metrics.

Symbols as in flops.py, with B samples, h heads and e bytes of autocast's type: 4, or 2 in bf16. The
residual stream and the norms are always float32.
"""

from dataclasses import dataclass
from typing import NamedTuple

from eltlab.config.cost.flops import params_blocks, params_embedding, params_total
from eltlab.config.network_shape import TIME_FEATURES, Network, network
from eltlab.config.sampling_schedules import evaluations
from eltlab.config.schema import Config

F32, BF16 = 4, 2

Terms = dict[str, int]  # bytes, by the tensors that take them
Moments = dict[str, Terms]  # what is alive in addition to the static bytes, by the moment


class Memory(NamedTuple):
    """Bytes that are always there, and what is alive in addition at the worst moment."""

    static: int
    activations: int

    @property
    def total(self) -> int:
        return self.static + self.activations


def training_memory(config: Config, device: str, precision: str) -> Memory:
    """Bytes of a training step on each device. device: cpu or cuda; precision: 32-true or bf16-mixed."""
    run = training_pass(config, device, precision)
    static = static_training_bytes(run.net, len(config.ema.lengths))
    return Memory(static, peak(training_moments(run)))


def inference_memory(config: Config, device: str, precision: str) -> Memory:
    """Bytes of sampling sampler.batch samples at the trained loop count, in at least two steps."""
    net, sampler = network(config), config.sampler
    guided = max(evaluations(sampler.guidance, sampler.guidance_schedule, sampler.steps)) == 2
    padding = -sampler.batch % 4 if device == "cpu" else 0  # AnytimeSampler pads the batch
    samples = (sampler.batch + padding) * (1 + guided)  # both halves of a guided pass run at once
    run = Pass(net, samples, config.loops, precision == "bf16-mixed", device == "cuda")
    return Memory(static_inference_bytes(net), peak(inference_moments(run, guided, sampler.name)))


def side_by_side(configs: list[Config], device: str, precision: str) -> int:
    """Bytes of runs that all stay in memory and whose steps alternate."""
    needs = [training_memory(config, device, precision) for config in configs]
    return sum(need.static for need in needs) + max(need.activations for need in needs)


def peak(moments: Moments) -> int:
    return max(sum(terms.values()) for terms in moments.values())


def static_training_bytes(net: Network, averages: int) -> int:
    """Backbone, averages, gradients and AdamW's two moments, and 4 bytes per tensor: fused AdamW's step."""
    # A Linear or LayerNorm has two tensors. A layer has four Linears and two norms. adaln has a
    # modulation instead of the norms, film in addition to them.
    tensors = net.layers * {"adaln": 10, "film": 14}.get(net.block, 12)
    tensors += (
        (10 + 2 * bool(net.final_norm) if net.masked else 11) + net.loop_embedding + 2 * net.inject_input
    )
    return (1 + averages) * static_inference_bytes(net) + F32 * (3 * params_total(net) + tensors)


def static_inference_bytes(net: Network) -> int:
    """The averaged weights, and the sine-cosine positions. Masked networks learn their positions."""
    return F32 * (params_total(net) + (0 if net.masked else net.tokens * net.width))


@dataclass
class Pass:
    """One pass of a network, how it is run, and the symbols of the formulas below."""

    net: Network
    samples: int
    loops: int
    half: bool  # bf16 autocast
    cuda: bool
    training: bool = False
    exits_read: int = 1
    distilled: bool = False
    recompute: bool = False
    batch: int = 0  # samples on all devices and in all micro-batches

    def __post_init__(self) -> None:
        net = self.net
        self.e = BF16 if self.half else F32
        self.d, self.m, self.c, self.h = net.width, net.mlp_width, net.cond_width, net.heads
        self.rows = self.samples * net.trunk_tokens  # BT, tokens of the trunk in all samples
        self.image_rows = self.samples * net.tokens  # BT′, tokens of the images in all samples
        self.state = F32 * self.rows * self.d  # the residual stream
        # With dropout, the CPU stores the T² attention weights. Otherwise attention is fused.
        self.math = self.training and net.dropout > 0 and not self.cuda
        # At the start of a loop something is added to the state, which makes a new tensor.
        self.adds_to_loops = net.loop_embedding or (net.inject_input and self.loops > 1)
        # Bytes per token of a norm's output before a branch. post_norm has no norm there.
        self.normed = 0 if net.block == "post_norm" else F32 * self.d
        # Gradients exist when the pass starts: those of an earlier micro-batch, or DDP's buckets.
        self.keeps_gradients = self.batch > self.samples


def training_pass(config: Config, device: str, precision: str) -> Pass:
    """The pass of the deepest step on one device."""
    spent = config.supervision.spent(config.loops)
    return Pass(
        network(config),
        samples=config.micro_batch_size,
        loops=max(spent.depths),
        half=precision == "bf16-mixed",
        cuda=device == "cuda",
        training=True,
        exits_read=spent.exits_read,
        distilled=spent.distilled,
        recompute=config.trainer.recompute,
        batch=config.batch_size,
    )


def training_moments(run: Pass) -> Moments:
    """What is alive when noise is drawn, at the loss, and in the backward of the heads and of the last
    layer. With recompute, also in the forward of the last layer and in the backward of the first loop."""
    net, rows, image_rows, state = run.net, run.rows, run.image_rows, run.state
    weights, kept = params_total(net), rows * sum(layer_kept(run).values())
    copies = BF16 * weights * run.half
    layers = net.depth_of(run.loops, run.exits_read) * (state if run.recompute else kept)
    if run.recompute and net.coda and not run.adds_to_loops:
        # The coda of an exit and the next loop share an input.
        layers -= (run.exits_read - 1) * state
    # Static bytes count all gradients, but zero_grad has freed those of the last step.
    missing = {"gradients not made yet": 0 if run.keeps_gradients else -F32 * weights}
    forward = inputs_kept(run) | {"layers": layers, "bf16 weights": copies}
    # After the loss nothing reads the noisy images. A repeated layer casts its own weights again.
    backward = forward | missing | {"noisy images": 0}
    backward["bf16 weights"] = 0 if run.recompute else copies
    # Noise is drawn for the whole batch; x, the terms of x and of the noise, and z for the slice.
    numbers = 0 if net.masked else net.tokens * net.patch_values * (run.batch + 4 * run.samples)
    # The next loop keeps the state of an earlier exit too, unless it starts from another tensor.
    alone = run.exits_read if net.coda or run.adds_to_loops else 1
    heads = {
        "heads": run.exits_read * image_rows * head_kept(run),
        "inputs of the final norm": state * alone * bool(net.final_norm),
    }
    prediction = {"gradients of a prediction": image_rows * 2 * F32 * net.outputs}
    layer = {"inside a layer": rows * layer_backward(run)}
    exits = {"gradients of the other exits": (run.exits_read - 1) * state}
    moments = {
        "noise": missing | {"noise and noisy images": F32 * numbers},
        "loss": forward | heads | {"predictions and losses": image_rows * loss_forward(run)},
        "backward of the heads": backward | heads | prediction,
        "backward of the last layer": backward | layer | exits,
    }
    if net.masked:  # the gradients of both uses, and their sum
        moments["end"] = {"gradients of the tied embedding": 2 * F32 * net.codes * run.d}
    if run.recompute:
        # A checkpoint keeps what the first op of its block reads, except if autocast copies that.
        shared = 0 if run.half and net.block == "post_norm" else state
        repeated = layer | {"repeated layer": kept - shared + copies // net.layers}
        moments["backward of the last layer"] |= repeated
        moments["forward of the last layer"] = forward | {
            "inside a layer": rows * layer_working(run) - state,
            "states at the start of a loop": 2 * state * run.adds_to_loops,
        }
        before = net.prelude + net.unique_layers * (run.loops - 1)
        moments["backward of the first loop"] = (
            backward | repeated | {"layers": state * max(before, 1), **gradients_at_first_loop(run)}
        )
    return moments


def inputs_kept(run: Pass) -> Terms:
    """Bytes that autograd keeps before the layers."""
    net, e, c = run.net, run.e, run.c
    # The injection keeps the input of the loop if it had to copy it.
    copied = run.adds_to_loops and net.inject_input and (run.half or net.loop_embedding)
    injection = {"input of the injection": e * run.rows * run.d * copied}
    if net.masked:
        return injection | {"input of the norm": run.state}
    numbers, condition = run.image_rows * net.patch_values, 2 * F32 * TIME_FEATURES + 6 * e * c
    return injection | {
        "time and class": run.samples * condition,
        "modulation": run.samples * net.layers * e * (net.modulation + c * net.modulated),
        "clean images and patches": numbers * (F32 + e),
        "noisy images": numbers * F32,
    }


def layer_kept(run: Pass) -> Terms:
    """Bytes per token that autograd keeps of one application of a layer.

    Plain and fused: 32d + 8m in float32, 20d + 4m in bf16, and 4h + 16 in both.
    """
    net, e, d, m, h = run.net, run.e, run.d, run.m, run.h
    return {
        "inputs of the norms, means and deviations": 2 * F32 * d + 4 * F32,
        "inputs of qkv and up, of GELU and down": 2 * e * (d + m),
        "q, k, v and attention output": (3 * F32 + e if run.math else 4 * e) * d,
        # The softmax, dropout's noise and their product; if fused, a log-sum-exp per query.
        "attention weights": 3 * F32 * h * net.trunk_tokens if run.math else F32 * h,
        # CUDA keeps a byte per number, the CPU noise in the type of the branch.
        "dropout": 2 * d * (1 if run.cuda else e) * (net.dropout > 0),
        # The direction of v, the output without it, two norms, a dot; v in float32, or qkv again.
        "exclusive attention": net.exclusive_attention
        * (F32 * d + e * d + 3 * F32 * h + F32 * d * (1 if run.half else 3 * run.math)),
        "inputs of adaln's scales and gates": 2 * (F32 + e) * d * (net.block == "adaln"),
        "film's modulated hidden layer": e * m * (net.block == "film"),
    }


def layer_backward(run: Pass) -> int:
    """Bytes per token in the backward of a layer, in addition to what is kept: the largest of three."""
    net, e, d, m = run.net, run.e, run.d, run.m
    mlp = e * m * (2 if net.block == "film" else 1) + run.normed
    weights = (F32 * run.h * net.trunk_tokens + F32 * d - 2 * e * m - e * d) * run.math
    # A repeated post_norm block ends in a norm whose output nobody reads.
    end = (2 + run.half) * F32 * d * (run.recompute and net.block == "post_norm")
    return max(mlp, weights, end)


def gradients_at_first_loop(run: Pass) -> Terms:
    """When the backward reaches the first loop: gradients of shared weights, which are summed over the
    loops in e bytes, and, unless all gradients exist already, those that are still missing."""
    net, layer = run.net, params_blocks(run.net) // run.net.layers
    looped = net.unique_layers * layer * (run.loops > 1)
    missing = params_embedding(net) + net.layers * net.modulation * (run.c + 1)
    missing += looped + (net.prelude if looped else 1) * layer
    return {
        "sums over the loops": run.e * looped,
        "gradients not made yet": 0 if run.keeps_gradients else -F32 * missing,
    }


def head_kept(run: Pass) -> int:
    """Bytes per token of the image that autograd keeps of one exit. Masked: four states and the
    log-probabilities. Diffusion: the inputs of norm, modulation and output, and the error."""
    net, e, d = run.net, run.e, run.d
    if net.masked:  # CUDA's autocast makes the input of the norm float32
        return 4 * e * d + (F32 - e) * d * run.cuda + F32 * net.codes
    return F32 * d * (2 if net.block == "adaln" else 1) + e * d + F32 * net.patch_values


def loss_forward(run: Pass) -> int:
    """Bytes per token of the image at the last loss: all predictions, and the terms of the loss. Masked:
    float32 logits, or distilled the probabilities, log-probabilities and their product. Diffusion: two
    terms of the error, two more if distilled, and in bf16 the prediction in float32."""
    masked_terms = 3 if run.distilled else run.half
    terms = masked_terms if run.net.masked else 2 + 2 * run.distilled + run.half
    return (run.exits_read * run.e + F32 * terms) * run.net.outputs


# Copies of a prediction (or of z, which is as large) that a sampler holds: during a pass, between two
# passes; and the same two if guidance doubles the pass. maskgit: logits, tempered logits; softmax and
# CDF. ddpm, ddim: z, x, the prediction; three terms, and ddpm's noise. euler: z, the velocity; the
# step and the next z. heun holds that z too. Doubled: z twice in the pass; both halves and two terms.
HELD = {
    "maskgit": (2, 4, 2, 6),
    "ddpm": (3, 7, 5, 9),
    "ddim": (3, 6, 5, 9),
    "euler": (2, 4, 4, 8),
    "heun": (3, 5, 5, 9),
}


def inference_moments(run: Pass, guided: bool, sampler: str) -> Moments:
    """What is alive inside a layer, at the weights of a product, in the head and in the sampler."""
    net, d, e, c = run.net, run.d, run.e, run.c
    during, between = HELD[sampler][2:] if guided else HELD[sampler][:2]
    values = F32 * run.samples // (1 + guided) * net.tokens * net.outputs
    held = {"held by the sampler": values * during}
    trunk = held | {"conditions": run.samples * net.layers * e * net.modulation}
    # In addition to the input of a layer, the loop holds the inputs of the prelude, of the first loop
    # and of this loop, the exit before the coda, and the injection.
    of_loop = net.unique_layers > 1 or run.adds_to_loops or net.coda > 0
    states = (net.prelude > 0) + (run.loops > 1) + of_loop + (net.coda > 1)
    injection = e * run.rows * d * (net.inject_input and run.loops > 1)
    matrix = max(3 * d * d, d * run.m, c * c, c * net.modulation)
    copies = 1 if net.masked else 2  # patches, and the images that they are joined to
    layer = {"inside a layer": run.rows * layer_working(run)}
    return {
        "layer": trunk | layer | {"states": run.state * states + injection},
        "product": trunk | {"bf16 weights of the product": BF16 * run.half * matrix},
        "head": held
        | {
            "states": 3 * run.state,
            "predictions": e * run.image_rows * net.outputs * copies,
            "bf16 embedding, tied": BF16 * run.half * d * net.codes * net.masked,
        },
        "sampler": {"held by the sampler": values * between},
    }


def layer_working(run: Pass) -> int:
    """Bytes per token inside a layer without autograd, its input included: with qkv, the attention
    output and its projection, or with the MLP's hidden layer before and after GELU."""
    net, e, d = run.net, run.e, run.d
    weights = (3 * F32 * (run.h * net.trunk_tokens + d) - 2 * e * d) * run.math
    exclusive = (3 * F32 - e) * d * net.exclusive_attention
    attention = F32 * d + run.normed + 5 * e * d + max(weights, exclusive)
    mlp = 2 * F32 * d + 2 * e * run.m + (0 if net.block == "film" else run.normed)
    return max(attention, mlp)
