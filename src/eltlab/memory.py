"""Peak bytes of a training step and of a sampler's pass, in closed formulas. Pure Python, no torch.

Static bytes (weights, gradients, optimizer, average) are exact. Activations are a model of what
autograd keeps and of what lives beside it at the worst moment, read off torch's ops and held to the
live tensors by tests (`live.py`). Not counted: kernels' workspaces, the allocator's slack, the CUDA
context, the data set, tokenizer and metrics. Symbols as in `compute.py`, and B samples, h heads, e
bytes of autocast's type: 4, or 2 in bf16. The residual stream and the norms are float32 always.
"""

from dataclasses import dataclass
from typing import NamedTuple

from eltlab.compute import (
    TIME_FEATURES,
    Network,
    evaluations_per_step,
    network,
    params_blocks,
    params_embedding,
    params_total,
)
from eltlab.config import Config, IlsdConfig

F32, BF16 = 4, 2


class Memory(NamedTuple):
    """Bytes that are there all the time, and what is alive beside them at the worst moment."""

    static: int
    activations: int

    @property
    def total(self) -> int:
        return self.static + self.activations


def training_memory(config: Config, device: str, precision: str) -> Memory:
    """Of a training step. device: cpu or cuda; precision: 32-true or bf16-mixed."""
    net, spent = network(config), config.supervision.spent(config.loops)
    distilled = isinstance(config.supervision, IlsdConfig)
    recompute = config.trainer.recompute
    half, cuda = precision == "bf16-mixed", device == "cuda"
    batch, loops = config.batch_size, max(spent.depths)
    step = Pass(net, batch, loops, half, cuda, True, spent.readouts, distilled, recompute)
    return Memory(static_training_bytes(net), max(training_moments(step).values()))


def inference_memory(config: Config, device: str, precision: str) -> Memory:
    """Of sampling a batch at the trained loop count, twice the samples a pass where guidance doubles."""
    net, evaluations = network(config), evaluations_per_step(config)
    half, cuda, batch = precision == "bf16-mixed", device == "cuda", config.batch_size
    drawn = Pass(net, batch * max(evaluations), config.loops, half, cuda, training=False)
    moments = inference_moments(drawn, max(evaluations), again=len(evaluations) > 1)
    return Memory(static_inference_bytes(net), max(moments.values()))


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
    training: bool
    readouts: int = 1
    distilled: bool = False
    recompute: bool = False

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
    def injects(self) -> bool:
        return self.net.inject_input and self.loops > 1


def modulation(net: Network) -> int:
    """Numbers a sample that condition one layer: adaln 6d, film 2m."""
    return {"adaln": 6 * net.width, "film": 2 * net.mlp_width}.get(net.block, 0)


# --- training -------------------------------------------------------------------------------------


def training_moments(step: Pass) -> dict[str, int]:
    """Bytes beyond the static ones at the moments that can be the worst.

    forward: in the last block. loss: all exits read. heads, last: the backward through the heads and
    the last block. first: where blocks run again, the first loop's last block, most gradients made.
    The last step's gradients, which are in the static bytes, go as the backward begins.
    """
    net, rows, copies = step.net, step.rows, copied_weights(step)
    state = rows * F32 * net.width
    block = rows * layer_kept(step) + step.samples * scales_kept(step)
    kept = net.depth(step.loops, step.readouts) * (state if step.recompute else block)
    kept += outside_kept(step)
    exits = step.readouts * step.image_rows * head_kept(step)
    # The copies that a repeated block had in the forward are gone with autocast.
    back = kept + (0 if step.recompute else copies) - F32 * params_total(net)
    passing = rows * layer_backward(step)
    moments = {
        "forward": kept + copies + rows * layer_forward(step),
        "loss": kept + copies + exits + step.image_rows * loss_forward(step),
        "heads": back + exits + step.image_rows * loss_backward(step),
        "last": back + passing + (step.readouts - 1) * state,
    }
    if step.recompute:
        # The input that a checkpoint keeps is what the block's first op keeps, but for a bf16 copy.
        shared = 0 if step.half and net.block == "post_norm" else state
        again = block + copies // net.layers - shared + passing
        moments["last"] += again - passing
        before = max(net.prelude + net.unique_layers * (step.loops - 1), 1)
        moments["first"] = before * state + outside_kept(step) + again - unmade(step)
    return moments


def layer_kept(step: Pass) -> int:
    """Bytes a token that autograd keeps of one application of a layer.

    Plain and fused: float32 32d + 8m, bf16 20d + 4m, both + 4h + 16.
    """
    net, e, d, m, h = step.net, step.e, step.net.width, step.net.mlp_width, step.net.heads
    kept = 2 * F32 * d + 4 * F32  # what both norms read; their means and deviations
    kept += 2 * e * d + 2 * e * m  # what qkv, up and down read; what GELU reads
    if step.math:
        kept += 3 * F32 * d + e * d  # q, k, v and the output, each a copy
        kept += 3 * F32 * h * net.trunk_tokens  # softmax, noise and their product
    else:
        kept += 4 * e * d + F32 * h  # q, k, v, the output; a log-sum-exp a query
    if net.dropout:
        kept += 2 * d * (1 if step.cuda else e)  # CUDA: a byte; CPU: noise in the branch's type
    if net.exclusive_attention:
        kept += (
            F32 * d + e * d + 3 * F32 * h
        )  # v's direction, the output without it; two norms, a dot
        kept += F32 * d if step.half else 3 * F32 * d * step.math  # v in float32; else qkv again
    if net.block == "adaln":
        kept += 2 * F32 * d + 2 * e * d  # what both scales and both gates multiply
    if net.block == "film":
        kept += e * m  # the modulated hidden layer
    return kept


def scales_kept(step: Pass) -> int:
    """Bytes a sample that autograd keeps of one application of a layer: 1 + scale."""
    return step.e * {"adaln": 2 * step.net.width, "film": step.net.mlp_width}.get(step.net.block, 0)


def layer_forward(step: Pass) -> int:
    """Bytes a token beside what is kept, in a layer's forward."""
    net, d = step.net, step.net.width
    begun = 2 * F32 * d * (net.loop_embedding or step.injects)  # states that nothing else keeps
    if step.recompute:
        return layer_working(step) - F32 * d + begun
    if step.half and net.block == "post_norm":  # autograd keeps bf16 copies of these states
        return 2 * F32 * d + held_states(step)
    return step.e * net.mlp_width * (net.block == "film") + begun


def layer_backward(step: Pass) -> int:
    """Bytes a token beside what is kept, in a layer's backward: at the MLP, at the attention weights,
    or where a repeated post_norm block ends, whose last norm's output nobody reads."""
    net, e, d, m = step.net, step.e, step.net.width, step.net.mlp_width
    mlp = e * m * (2 if net.block == "film" else 1)
    mlp += 0 if net.block == "post_norm" else F32 * d
    weights = F32 * net.heads * net.trunk_tokens * step.math + F32 * d - 2 * e * m - e * d
    ended = (2 + step.half) * F32 * d * (step.recompute and net.block == "post_norm")
    return max(mlp, weights, ended) + F32 * d * step.injects


def outside_kept(step: Pass) -> int:
    """Bytes that autograd keeps before the blocks: what the masked nets' norm reads and their dropout;
    time, conditions, noisy images and patches; what the injection reads, where that is a copy."""
    net, e, d, c = step.net, step.e, step.net.width, step.net.cond_width
    kept = step.rows * e * d * (step.injects and (step.half or net.loop_embedding))
    if net.masked:
        mask = (1 if step.cuda else F32) * d * (net.dropout > 0)
        return kept + step.rows * (F32 * d + 2 * F32 + mask)
    layers = net.layers * e * (modulation(net) + c * net.modulated)
    condition = 2 * F32 * TIME_FEATURES + 6 * e * c + layers
    return kept + step.samples * condition + step.image_rows * net.patch_values * (2 * F32 + e)


def copied_weights(step: Pass) -> int:
    """bf16 copies of every Linear's weights and biases, which autocast makes once a step and the
    backward reads; the tied matrix of the masked head is a view, and copied for every exit."""
    net, d = step.net, step.net.width
    apart = net.loop_embedding * net.loops * d + (0 if net.block == "adaln" else 4 * d * net.layers)
    if net.masked:
        apart += (net.codes + net.classes + net.trunk_tokens + 6) * d
        apart -= net.codes * d * step.readouts
    else:
        apart += (net.classes + 1) * net.cond_width + (0 if net.block == "adaln" else 2 * d)
    return BF16 * (params_total(net) - apart) * step.half


def unmade(step: Pass) -> int:
    """Bytes of the gradients that lack as the backward reaches the first loop: of the embedding and of
    what is conditioned once. Shared weights sum theirs in e bytes, old, new and sum side by side."""
    net, d, layer = step.net, step.net.width, params_blocks(step.net) // step.net.layers
    lacking = params_embedding(net) + net.layers * modulation(net) * (net.cond_width + 1)
    if step.loops == 1:
        return F32 * (lacking + layer)
    summed = (F32 - step.e) * net.unique_layers * layer
    return (
        F32 * (lacking + net.prelude * layer) + summed - 2 * step.e * d * max(net.mlp_width, 3 * d)
    )


def head_kept(step: Pass) -> int:
    """Bytes a token of the image that autograd keeps of one exit.

    Masked: four states (CUDA's autocast makes the norm's input float32), the log-probabilities.
    Diffusion: what norm, modulation and output read, the error.
    """
    net, e, d = step.net, step.e, step.net.width
    if net.masked:
        return 4 * e * d + (F32 - e) * d * step.cuda + F32 * net.codes
    return F32 * d * (2 if net.block == "adaln" else 1) + e * d + F32 * net.patch_values


def loss_forward(step: Pass) -> int:
    """Bytes a token of the image beside what is kept, at the loss: all predictions, and distilled
    probabilities, log-probabilities and product, or float32 logits; of images some small ones."""
    net, e, k = step.net, step.e, step.net.codes
    if net.masked:
        terms = 3 * F32 * k if step.distilled else F32 * k * step.half
        return step.readouts * e * k + terms
    return (step.readouts * 2 * e + 4 * F32) * net.patch_values


def loss_backward(step: Pass) -> int:
    """Bytes a token of the image: two gradients of a prediction."""
    return 2 * F32 * (step.net.codes if step.net.masked else step.net.patch_values)


# --- inference ------------------------------------------------------------------------------------


def inference_moments(drawn: Pass, evaluations: int, again: bool) -> dict[str, int]:
    """Bytes beyond the static ones in a block, in the masked head, and in the masked sampler.

    again: from the second step on, what the last step drew from lives through the pass: logits and
    tempered logits, or z, prediction and x.
    """
    net, e, d, k = drawn.net, drawn.e, drawn.net.width, drawn.net.codes
    values = drawn.image_rows * F32 * (k if net.masked else net.patch_values)
    old = again * (2 * values // evaluations if net.masked else 3 * values)
    conditions = net.layers * drawn.samples * e * modulation(net)
    block = drawn.rows * (layer_working(drawn) + held_states(drawn)) + conditions
    # A product's bf16 weights live as long as the product: beside qkv or up, before attention, GELU.
    weights = BF16 * d * max(3 * d, net.mlp_width) * drawn.half
    narrow = drawn.rows * (product_working(drawn) + held_states(drawn)) + conditions + weights
    moments = {"block": max(block, narrow) + old}
    if net.masked:
        moments["head"] = drawn.image_rows * (3 * F32 * d + e * k) + BF16 * k * d * drawn.half + old
        # Unconditional + w · (difference): both halves, two terms. Drawing: logits, tempered, softmax, CDF.
        moments["sampler"] = 4 * values // evaluations + (old if evaluations == 2 else 0)
    else:
        moments["conditions"] = BF16 * modulation(net) * net.cond_width * drawn.half + conditions
    return moments


def layer_working(step: Pass) -> int:
    """Bytes a token without autograd, the block's input included: with qkv, the attention's output and
    its projection, or with the MLP's hidden layer before and after GELU."""
    net, e, d, m = step.net, step.e, step.net.width, step.net.mlp_width
    normed = 0 if net.block == "post_norm" else F32 * d
    attention = F32 * d + normed + 5 * e * d
    weights = 3 * F32 * (net.heads * net.trunk_tokens + d) * step.math
    attention += max(weights, (3 * F32 - e) * d * net.exclusive_attention)
    mlp = 2 * F32 * d + 2 * e * m + (0 if net.block == "film" else normed)
    return max(attention, mlp + e * d * (net.block == "adaln"))  # adaln's frame holds the branch


def product_working(step: Pass) -> int:
    """Bytes a token as up or qkv runs under autocast: its input also in bf16."""
    net, e, d, m = step.net, step.e, step.net.width, step.net.mlp_width
    normed = 0 if net.block == "post_norm" else F32 * d
    return normed + F32 * d + BF16 * d * step.half + max(3 * e * d, F32 * d + e * m)


def held_states(step: Pass) -> int:
    """Bytes a token of the states that the loop's frames hold beside the block's input: the input of
    the prelude, of the first loop and of this one, and what is injected."""
    net = step.net
    begun = net.unique_layers > 1 or net.loop_embedding or step.injects or net.coda > 0
    states = (net.prelude > 0) + (step.loops > 1) + begun
    return F32 * net.width * states + step.e * net.width * step.injects
