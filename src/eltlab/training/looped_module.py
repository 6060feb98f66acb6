"""The LightningModule of every combination of objective, supervision and backbone."""

import math
import time
from typing import Any

import torch
from lightning import LightningModule
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from eltlab.common import seeds
from eltlab.common.errors import Diverged, UserError
from eltlab.common.package_info import SOURCE, code_version
from eltlab.common.seeds import WHOLE_BATCH, BatchNoise, BatchSlice
from eltlab.common.torch_device import device_name, peak_memory_bytes
from eltlab.config.schema import Config
from eltlab.generation.objective import build_objective, check_losses
from eltlab.model.backbone import build_backbone
from eltlab.training.ema import ema_copy, ema_decay, ema_update, exponent
from eltlab.training.running_means import Meter
from eltlab.training.sharding import shard_networks, shard_optimizer_state
from eltlab.training.supervision import build_supervision

BAD_STEPS = 5  # a run stops after this many steps in a row without a finite gradient

SKIPS = ("skipped", "skipped_in_row", "longest_bad")  # the counters of such steps


class LoopedModule(LightningModule):
    """Trains the network of config from step `start` (set by `resume`) to config.steps.

    A step depends only on the weights, the optimizer and (seed, step). One pass of L loops serves every
    exit that the supervision reads, and nothing waits for the device.

    Args:
        codebook: stored in the checkpoint, because a run always decodes with the codes it was trained on.
        data_hash: stored in the checkpoint, because a run does not resume on other images.
        batch_slice: rank, world size and number of micro-batches.
    """

    def __init__(
        self,
        config: Config,
        codebook: Tensor | None = None,
        data_hash: str = "",
        batch_slice: BatchSlice = WHOLE_BATCH,
    ) -> None:
        super().__init__()
        self.config, self.batch_slice = config, batch_slice
        self.codebook, self.data_hash = codebook, data_hash
        self.backbone = build_backbone(config)
        # One average for each of ema.lengths, in their order. runs/load_model.py reads them by this order.
        self.ema = nn.ModuleList(ema_copy(self.backbone) for _ in config.ema.lengths)
        self.exponents = [exponent(length) for length in config.ema.lengths]
        stack: Any = self.backbone.stack
        stack.recompute = config.trainer.recompute
        if config.trainer.compile:
            stack.compile_blocks()
        self.objective = build_objective(config)
        check_losses(self.objective, config)
        self.supervision = build_supervision(config.supervision, config.loops, config.seed, config.steps)
        self.meter = Meter()
        self.start = self.step = 0  # steps done when this process started, and so far
        # Steps without a finite gradient: in total, since the last good step, and the most in a row.
        self.skipped = self.skipped_in_row = self.longest_bad = torch.zeros(())
        self.peak_memory = 0  # bytes, in the processes before this one
        self.train_seconds = 0.0
        self.clock = time.monotonic()
        self._optimizer_state: dict[str, Any] | None = None

    @property
    def average(self) -> nn.Module:
        """The average of ema.length, which is validated and sampled during training."""
        ema = self.config.ema
        assert ema.length is not None  # resolve has set it
        return self.ema[ema.lengths.index(ema.length)]

    def configure_model(self) -> None:
        """Shards the networks if Lightning's strategy has set a device mesh (FSDP2)."""
        mesh = self.device_mesh
        if mesh is not None:
            bf16 = self.trainer.precision == "bf16-mixed"
            shard_networks(self.backbone, self.ema, mesh["data_parallel"], bf16)

    # --- one step ---------------------------------------------------------------------------------

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        """The loss of one micro-batch: inputs x of the objective and labels [B]."""
        x, labels_B = batch
        config, step = self.config, self.step
        slices = self.batch_slice.each_micro_batch()
        batch_slice = slices[batch_idx % len(slices)]
        generator = seeds.generator(config.seed, "corrupt", step, device=self.device)
        noise = BatchNoise(generator, batch_slice.count * len(labels_B), batch_slice)
        # Only dropout draws from the global generator, and only its seed depends on the slice.
        torch.manual_seed(seeds.fold(config.seed, "dropout", step, batch_slice.index))
        labels_B = self.drop_labels(labels_B, noise)
        inputs, target = self.objective.corrupt(x, noise)
        exits, track = self.supervision.exits(step), self.is_report_due(step)
        if step == self.start:
            check_spent(config, exits)
        done = self.backbone(*inputs, labels_B=labels_B, exits=exits, track=track)
        losses = self.supervision.losses(self.objective, done.exits, target, step)
        self.meter.add(losses.log)
        if done.updates is not None:
            self.meter.add({f"update_{n + 1}": u for n, u in enumerate(done.updates)})
        return losses.total

    def drop_labels(self, labels_B: Tensor, noise: BatchNoise) -> Tensor:
        """Replaces a fraction label_dropout of the labels by the null label, for classifier-free guidance."""
        dropped = noise.uniform() < self.config.objective.label_dropout
        return labels_B.masked_fill(dropped, self.config.data.classes)

    def is_report_due(self, step: int) -> bool:
        """Whether a line of metrics.csv is written after this step."""
        return (step + 1) % self.config.trainer.log_every == 0 or step + 1 == self.config.steps

    # --- optimizer --------------------------------------------------------------------------------

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Fused AdamW; weight decay on matrices and embeddings, not on gains and biases."""
        optim = self.config.optim
        parameters = list(self.backbone.parameters())
        groups = [
            {"params": [p for p in parameters if p.dim() >= 2], "weight_decay": optim.weight_decay},
            {"params": [p for p in parameters if p.dim() < 2], "weight_decay": 0.0},
        ]
        b1, b2 = optim.betas
        return torch.optim.AdamW(groups, lr=optim.lr, betas=(b1, b2), fused=True)

    def configure_gradient_clipping(self, optimizer: Any, *args: Any, **kwargs: Any) -> None:
        """Clips by the global norm. If the norm is not finite, the optimizer skips the step."""
        clip = self.config.optim.clip or math.inf
        norm = torch.nn.utils.clip_grad_norm_(self.backbone.parameters(), clip)
        if isinstance(norm, DTensor):  # the norm of shards: all ranks must skip the same steps
            norm = norm.full_tensor()
        bad = (~norm.isfinite()).float()
        # Fused AdamW reads found_inf on the device (it was made for loss scaling). If it is 1, weights,
        # moments and step count stay as they are, and the host has not waited for the norm.
        optimizer.found_inf = bad
        self.skipped = self.skipped.to(bad.device) + bad
        self.skipped_in_row = (self.skipped_in_row.to(bad.device) + 1) * bad
        self.longest_bad = self.longest_bad.to(bad.device).maximum(self.skipped_in_row)
        self.meter.add({"grad_norm": norm})

    def optimizer_step(
        self, epoch: int, batch_idx: int, optimizer: Any, optimizer_closure: Any = None
    ) -> None:
        """The optimizer step of `fit` and of `bench`. The closure computes and clips the gradients."""
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(self.config, self.step)
        optimizer.step(closure=optimizer_closure)
        # Steps that were skipped (found_inf) count too: the host does not know which ones they are.
        for average, gamma in zip(self.ema, self.exponents, strict=True):
            ema_update(average, self.backbone, ema_decay(gamma, self.step))
        self.step += 1

    # --- reports and state ------------------------------------------------------------------------

    def report(self) -> dict[str, float]:
        """The means since the last report, for metrics.csv. Waits for the device. Raises Diverged."""
        lr, skipped = learning_rate(self.config, self.step - 1), self.skipped.item()
        values = self.meter.flush() | {"lr": lr, "skipped": skipped}
        if (longest := int(self.longest_bad.item())) >= BAD_STEPS:
            raise Diverged(
                f"the loss was not finite for {longest} steps in a row by image "
                f"{self.images_seen:,}; the last good checkpoint is kept. "
                f"Try a lower optim.lr (now {self.config.optim.lr}) or optim.clip"
            )
        return values

    @property
    def images_seen(self) -> int:
        return self.step * self.config.batch_size

    def tick(self, count: bool = True) -> None:
        """Adds the time since the last tick to the training time, unless count is False."""
        now = time.monotonic()
        if count:
            self.train_seconds += now - self.clock
        self.clock = now

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint["eltlab"] = {
            "step": self.step,
            "images_seen": self.images_seen,
            "train_seconds": self.train_seconds,
            **{name: getattr(self, name).item() for name in SKIPS},
            "peak_memory_bytes": max(self.peak_memory, peak_memory_bytes(self.device)),
            "meter": self.meter.state(),
            "codebook": self.codebook,
            "data": self.data_hash,
            "precision": self.trainer.precision,
            "device": device_name(self.device),
            "code": code_version(),
            "source": SOURCE,
        }

    def resume(self, checkpoint: dict[str, Any]) -> None:
        """Restores weights, average, optimizer and counters from a checkpoint of the same run."""
        self.load_state_dict(checkpoint["state_dict"])
        self._optimizer_state = checkpoint["optimizer_states"][0]
        counters = checkpoint["eltlab"]
        self.start = self.step = counters["step"]
        self.train_seconds = counters["train_seconds"]
        self.meter.restore(counters["meter"])
        self.peak_memory = counters["peak_memory_bytes"]
        for name in SKIPS:
            setattr(self, name, torch.tensor(counters[name]))

    def on_train_start(self) -> None:
        if self._optimizer_state is not None:
            optimizer: Any = self.optimizers(use_pl_optimizer=False)
            optimizer.load_state_dict(shard_optimizer_state(self._optimizer_state, optimizer))
            self._optimizer_state = None
        self.tick(count=False)


def learning_rate(config: Config, step: int) -> float:
    """Linear warm-up over the share optim.warmup of the run, then constant or a cosine that ends at zero.

    A function of the share of the run alone, so runs of different lengths have the same schedule.
    """
    optim, share = config.optim, (step + 1) / config.steps
    if share < optim.warmup:
        return optim.lr * share / optim.warmup
    if optim.schedule == "constant":
        return optim.lr
    progress = (share - optim.warmup) / (1 - optim.warmup)
    return optim.lr * (1 + math.cos(math.pi * min(progress, 1.0))) / 2


def check_spent(config: Config, exits: tuple[int, ...]) -> None:
    """Raises UserError if a step reads other exits than its supervision says in `spent`.

    Training FLOPs, budgets and memory follow from `spent`, which an extension may forget to define.
    """
    spent = config.supervision.spent(config.loops)
    loops, read = max(exits), len(set(exits))
    if loops in spent.depths and read == spent.exits_read:
        return
    depths = " or ".join(map(str, sorted(spent.depths)))
    raise UserError(
        f"supervision={config.supervision.file or config.supervision.name}: a step runs {loops} loops and "
        f"reads {read} exits, but its `spent` says {depths} loops and {spent.exits_read} exits read, which "
        "its cost follows; return Spent({loops: share}, exits read) there (docs/extending.md)"
    )
