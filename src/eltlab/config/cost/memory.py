"""Peak bytes of a training step and of a sampler's pass, in closed formulas. Pure Python, no torch.

Static bytes (weights, gradients, optimizer, average) are exact. Activations are a model of what
autograd keeps and of what lives beside it at the worst moment, read off torch's ops and held to the
live tensors by tests (`live.py`): what 15 % can do without is left out. Nor are counted kernels'
workspaces, the allocator's slack, the CUDA context, the data set, tokenizer and metrics. Symbols as
in `compute.py`, and B samples, h heads, e bytes of autocast's type: 4, or 2 in bf16. The residual
stream and the norms are float32 always.
"""

from dataclasses import dataclass
from typing import NamedTuple

from eltlab.config.cost.flops import (
    TIME_FEATURES,
    Network,
    network,
    params_blocks,
    params_embedding,
    params_total,
)
from eltlab.config.schedules import evaluations
from eltlab.config.schema import Config

F32, BF16 = 4, 2


class Memory(NamedTuple):
    """Bytes that are there all the time, and what is alive beside them at the worst moment."""

    static: int
    activations: int

    @property
    def total(self) -> int:
        return self.static + self.activations


def training_memory(config: Config, device: str, precision: str) -> Memory:
    """Of a training step on each device, as DDP spreads it. device: cpu or cuda; precision: 32-true or
    bf16-mixed."""
    net, spent = network(config), config.supervision.spent(config.loops)
    half, cuda, loops = precision == "bf16-mixed", device == "cuda", max(spent.depths)
    reads, recompute = (spent.exits_read, spent.distilled), config.trainer.recompute
    kept = config.world > 1 or config.trainer.accumulate > 1
    batch = config.batch_size
    run = Pass(
        net, config.micro_batch_size, loops, half, cuda, True, *reads, recompute, kept, batch
    )
    return Memory(static_training_bytes(net), max(training_moments(run).values()))


def inference_memory(config: Config, device: str, precision: str) -> Memory:
    """Of sampling a batch at the trained loop count in two steps or more, twice the samples a pass
    where guidance doubles."""
    net, sampler = network(config), config.sampler
    guided = max(evaluations(sampler.guidance, sampler.guidance_schedule, sampler.steps))
    half, cuda, samples = precision == "bf16-mixed", device == "cuda", config.batch_size
    run = Pass(net, samples * guided, config.loops, half, cuda)
    moments = inference_moments(run, guided == 2, HELD[sampler.name])
    return Memory(static_inference_bytes(net), max(moments.values()))


def side_by_side(configs: list[Config], device: str, precision: str) -> int:
    """Bytes of runs that all stay in memory and take their steps in turns."""
    needs = [training_memory(config, device, precision) for config in configs]
    return sum(need.static for need in needs) + max(need.activations for need in needs)


# --- static ---------------------------------------------------------------------------------------


def static_training_bytes(net: Network) -> int:
    """Weights, gradients, AdamW's two moments and the average, 5 · 4 bytes a parameter; fused AdamW's
    step counter, 4 bytes a tensor; the fixed positions of the backbone and of its average."""
    return F32 * (5 * params_total(net) + tensors(net) + 2 * positions(net))


def static_inference_bytes(net: Network) -> int:
    """The averaged weights and the fixed positions."""
    return F32 * (params_total(net) + positions(net))


def tensors(net: Network) -> int:
    """Parameter tensors: two a Linear or LayerNorm. A layer has four Linears, two norms or a
    modulation, film both."""
    layer = {"adaln": 10, "film": 14}.get(net.block, 12)
    outside = 10 if net.masked else 11
    return net.layers * layer + outside + net.loop_embedding + 2 * net.inject_input


def positions(net: Network) -> int:
    """Numbers in the sine-cosine buffer; masked nets learn their positions."""
    return 0 if net.masked else net.tokens * net.width


# --- a pass ---------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Pass:
    """One pass of the network, and how it is run."""

    net: Network
    samples: int
    loops: int
    half: bool  # bf16 autocast
    cuda: bool
    training: bool = False
    exits_read: int = 1
    distilled: bool = False
    recompute: bool = False
    keeps_gradients: bool = False  # those of an earlier piece, or DDP's buckets, as a pass begins
    batch: int = 0  # of all devices and pieces: noise is drawn for the whole of it

    @property
    def e(self) -> int:
        return BF16 if self.half else F32

    @property
    def rows(self) -> int:
        """Tokens of the trunk in all samples, BT."""
        return self.samples * self.net.trunk_tokens

    @property
    def image_rows(self) -> int:
        """Tokens of the images in all samples, BT′."""
        return self.samples * self.net.tokens

    @property
    def math(self) -> bool:
        """Whether attention makes its T² weights: dropout on the CPU. Elsewhere torch fuses it."""
        return self.training and self.net.dropout > 0 and not self.cuda

    @property
    def begins(self) -> bool:
        """Whether a loop starts from another state than the one that the last loop left."""
        return self.net.loop_embedding or (self.net.inject_input and self.loops > 1)

    @property
    def normed(self) -> int:
        """Bytes a token of what a norm before a branch gives; post_norm has none there."""
        return 0 if self.net.block == "post_norm" else F32 * self.net.width


def modulation(net: Network) -> int:
    """Numbers a sample that condition one layer: adaln 6d, film 2m."""
    return {"adaln": 6 * net.width, "film": 2 * net.mlp_width}.get(net.block, 0)


# --- training -------------------------------------------------------------------------------------


def training_moments(run: Pass) -> dict[str, int]:
    """Bytes beyond the static ones at the moments that can be the worst.

    corrupt: noise for the whole batch, and of the share x, its part and that of the noise, and z. loss:
    all exits read. heads, last: the backward through the heads and the last block. Where blocks
    run again, forward: in the last block; first: the first loop's last block, most gradients made.
    tied: as the backward ends. The last step's gradients, which are static bytes, go as it begins.
    """
    net, rows, exits_read = run.net, run.rows, run.exits_read
    copies = BF16 * params_total(net) * run.half  # autocast's, once a step; the backward reads them
    state, block = F32 * rows * net.width, rows * layer_kept(run)
    passing = rows * layer_backward(run)
    images = 0 if net.masked else F32 * run.image_rows * net.patch_values
    heads = exits_read * run.image_rows * head_kept(run)
    outside = outside_kept(run)
    blocks = net.depth(run.loops, exits_read) * (state if run.recompute else block)
    if run.recompute and net.coda and not run.begins:
        blocks -= (exits_read - 1) * state  # an exit's coda starts where the next loop does
    # The noisy images go with the loss; the copies that a repeated block had, with autocast.
    back = outside - images + blocks + (0 if run.recompute else copies)
    back -= F32 * params_total(net) * (not run.keeps_gradients)
    drawn = 0 if net.masked else F32 * net.tokens * net.patch_values * (run.batch + 4 * run.samples)
    moments = {
        "corrupt": drawn - F32 * params_total(net) * (not run.keeps_gradients),
        "loss": outside + blocks + copies + heads + run.image_rows * loss_forward(run),
        "heads": back + heads + run.image_rows * loss_backward(run),
        "last": back + passing + (exits_read - 1) * state,  # gradients of the other exits
    }
    if net.masked:  # all gradients made, the tied embedding's from both ends and their sum
        moments["tied"] = 2 * F32 * net.codes * net.width
    if run.recompute:
        # The checkpoint keeps what the block's first op reads, but for a bf16 copy.
        shared = 0 if run.half and net.block == "post_norm" else state
        again = block - shared + copies // net.layers
        before = max(net.prelude + net.unique_layers * (run.loops - 1), 1)
        begun = 2 * state * run.begins  # states that nothing else keeps
        moments["forward"] = outside + blocks + copies + rows * layer_working(run) - state + begun
        moments["last"] += again
        made = summing(run) if run.keeps_gradients else -unmade(run)
        moments["first"] = outside - images + before * state + again + passing + made
    return moments


def layer_kept(run: Pass) -> int:
    """Bytes a token that autograd keeps of one application of a layer.

    Plain and fused: float32 32d + 8m, bf16 20d + 4m, both + 4h + 16.
    """
    net, e, d, m, h = run.net, run.e, run.net.width, run.net.mlp_width, run.net.heads
    kept = 2 * F32 * d + 4 * F32  # what both norms read; their means and deviations
    kept += 2 * e * d + 2 * e * m  # what qkv, up and down read; what GELU reads
    if run.math:
        kept += 3 * F32 * d + e * d  # q, k, v and the output, each a copy
        kept += 3 * F32 * h * net.trunk_tokens  # softmax, noise and their product
    else:
        kept += 4 * e * d + F32 * h  # q, k, v, the output; a log-sum-exp a query
    if net.dropout:
        kept += 2 * d * (1 if run.cuda else e)  # CUDA: a byte; CPU: noise in the branch's type
    if net.exclusive_attention:
        # v's direction and the output without it; two norms and a dot; v in float32, or qkv again.
        kept += F32 * d + e * d + 3 * F32 * h
        kept += F32 * d if run.half else 3 * F32 * d * run.math
    if net.block == "adaln":
        kept += 2 * F32 * d + 2 * e * d  # what both scales and both gates multiply
    if net.block == "film":
        kept += e * m  # the modulated hidden layer
    return kept


def layer_backward(run: Pass) -> int:
    """Bytes a token beside what is kept, in a layer's backward: at the MLP, at the attention weights,
    or where a repeated post_norm block ends, whose last norm's output nobody reads."""
    net, e, d, m = run.net, run.e, run.net.width, run.net.mlp_width
    mlp = e * m * (2 if net.block == "film" else 1) + run.normed
    weights = (F32 * net.heads * net.trunk_tokens + F32 * d - 2 * e * m - e * d) * run.math
    ended = (2 + run.half) * F32 * d * (run.recompute and net.block == "post_norm")
    return max(mlp, weights, ended)


def outside_kept(run: Pass) -> int:
    """Bytes kept before the blocks: what the masked nets' norm reads, or time, conditions, clean and
    noisy images and patches."""
    net, e, c = run.net, run.e, run.net.cond_width
    copied = run.begins and net.inject_input and (run.half or net.loop_embedding)
    injected = e * run.rows * net.width * copied  # what the injection reads, where that is a copy
    if net.masked:
        return injected + F32 * run.rows * net.width
    layers = net.layers * e * (modulation(net) + c * net.modulated)
    condition = 2 * F32 * TIME_FEATURES + 6 * e * c + layers
    return injected + run.samples * condition + run.image_rows * net.patch_values * (2 * F32 + e)


def unmade(run: Pass) -> int:
    """Bytes of the gradients that lack as the backward reaches the first loop: of the embedding, the
    prelude and what is conditioned once; shared weights sum theirs in e bytes."""
    net, layer = run.net, params_blocks(run.net) // run.net.layers
    lacking = params_embedding(net) + net.layers * modulation(net) * (net.cond_width + 1)
    if run.loops == 1:
        return F32 * (lacking + layer)
    return F32 * (lacking + net.prelude * layer) + (F32 - run.e) * net.unique_layers * layer


def summing(run: Pass) -> int:
    """Bytes of the shared weights' gradients, which are summed over the loops before they are added to
    those of earlier pieces."""
    net = run.net
    return run.e * net.unique_layers * (params_blocks(net) // net.layers) * (run.loops > 1)


def head_kept(run: Pass) -> int:
    """Bytes a token of the image that autograd keeps of one exit. Masked: four states (CUDA's autocast
    makes the norm's input float32), the log-probabilities. Diffusion: what norm, modulation and
    output read, the error."""
    net, e, d = run.net, run.e, run.net.width
    if net.masked:
        return 4 * e * d + (F32 - e) * d * run.cuda + F32 * net.codes
    return F32 * d * (2 if net.block == "adaln" else 1) + e * d + F32 * net.patch_values


def loss_forward(run: Pass) -> int:
    """Bytes a token of the image beside what is kept, at the last loss: all predictions, and masked
    float32 logits, or distilled probabilities, log-probabilities and product; else two terms of
    the error, distilled two more, and the prediction in float32."""
    net = run.net
    terms = (3 if run.distilled else run.half) if net.masked else 2 + 2 * run.distilled + run.half
    return (run.exits_read * run.e + F32 * terms) * (net.codes if net.masked else net.patch_values)


def loss_backward(run: Pass) -> int:
    """Bytes a token of the image: two gradients of a prediction, which is gone."""
    return 2 * F32 * (run.net.codes if run.net.masked else run.net.patch_values)


# --- inference ------------------------------------------------------------------------------------


class Held(NamedTuple):
    """Copies of a prediction (or of z, as large) that a sampler holds: through a pass, which is what the
    last one was drawn from, and between two; and both where guidance doubles the pass."""

    within: int
    between: int
    within_doubled: int
    between_doubled: int


# maskgit: logits and tempered ones; softmax and CDF. ddpm, ddim: z, x and the prediction; three terms,
# ancestral noise. euler: z and the velocity; the step and the next z. heun: that z is held too. Doubled:
# z twice in the pass; after it both halves and two terms.
HELD = {
    "maskgit": Held(2, 4, 2, 6),
    "ddpm": Held(3, 7, 5, 9),
    "ddim": Held(3, 6, 5, 9),
    "euler": Held(2, 4, 4, 8),
    "heun": Held(3, 5, 5, 9),
}


def inference_moments(run: Pass, doubled: bool, held: Held) -> dict[str, int]:
    """Bytes beyond the static ones in a block, at a product's weights, in the head and the sampler."""
    net, samples = run.net, run.samples // (1 + doubled)
    values = F32 * samples * net.tokens * (net.codes if net.masked else net.patch_values)
    old = values * (held.within_doubled if doubled else held.within)
    conditions = run.samples * net.layers * run.e * modulation(net)
    d, c = net.width, net.cond_width
    product = max(3 * d * d, d * net.mlp_width, c * c, c * modulation(net))
    tied = BF16 * run.half * d * net.codes * net.masked
    read = net.codes if net.masked else 2 * net.patch_values  # what the head gives, an image twice
    return {
        "block": old + conditions + run.rows * (layer_working(run) + held_states(run)),
        "head": old + 3 * F32 * run.rows * d + run.e * run.image_rows * read + tied,
        "weights": old + conditions + BF16 * product * run.half,  # autocast's copy, while it runs
        "sampler": values * (held.between_doubled if doubled else held.between),
    }


def layer_working(run: Pass) -> int:
    """Bytes a token without autograd, the block's input included: with qkv, the attention's output and
    its projection, or with the MLP's hidden layer before and after GELU."""
    net, e, d, m = run.net, run.e, run.net.width, run.net.mlp_width
    weights = (3 * F32 * (net.heads * net.trunk_tokens + d) - 2 * e * d) * run.math
    exclusive = (3 * F32 - e) * d * net.exclusive_attention
    attention = F32 * d + run.normed + 5 * e * d + max(weights, exclusive)
    return max(attention, 2 * F32 * d + 2 * e * m + (0 if net.block == "film" else run.normed))


def held_states(run: Pass) -> int:
    """Bytes a token of the states that the loop's frames hold beside the block's input: the input of
    the prelude, of the first loop and of this one, the exit before the coda, and what is injected."""
    net = run.net
    begun = net.unique_layers > 1 or run.begins or net.coda > 0
    states = (net.prelude > 0) + (run.loops > 1) + begun + (net.coda > 1)
    return net.width * (F32 * states + run.e * (net.inject_input and run.loops > 1))
