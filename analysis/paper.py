"""The published rows of ELT (arXiv 2604.09168) with the computed cost of their configurations.

    python -m eltlab.analysis.paper    prints the table (`make paper-table`)

`make results` writes it into docs/compute.md, and the opening comments of conf/experiment/paper/*.yaml.

The paper's "GFLOPs" are multiply-adds (MACs) of the layers over all passes of a sample. Its parameters are
those of the blocks, except in the rows with the counting "total".
"""

import sys
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from textwrap import fill

from eltlab.common.files import write_atomic
from eltlab.common.package_info import package_folder
from eltlab.common.text import format_si, format_table
from eltlab.config.cost.flops import (
    budget_flops,
    cost_per_sample,
    evaluations_per_step,
    macs_attention,
    macs_trunk,
    params_blocks,
    params_total,
    requested_depths,
)
from eltlab.config.network_shape import network
from eltlab.config.parsing import compose_node, parse_overrides, to_config
from eltlab.config.rules import resolve
from eltlab.config.schema import Config

H100 = 989.4e12  # dense bf16 FLOP/s of the SXM module, from NVIDIA's data sheet
UTILISATION = 0.4
CLOSE = 0.01  # a computed figure within this relative error reproduces the published one


@dataclass(frozen=True)
class Published:
    """One row of the paper's tables, in millions of parameters and 10⁹ MACs per sample."""

    name: str
    title: str
    result: str
    params: float
    counting: str = "blocks"
    gmacs: float | None = None


IMAGENET = "ImageNet-256, masked"
LATENT = "ImageNet-256, diffusion"
VIDEO = "UCF-101, masked video"

PUBLISHED = (
    Published("maskgit_l", f"MaskGIT-L, {IMAGENET}", "FID 2.1, IS 270.1", 303, gmacs=3700),
    Published("maskgit_xl", f"MaskGIT-XL, {IMAGENET}", "FID 2.0, IS 294.8", 446, gmacs=3900),
    Published("elt_l_8x3", f"ELT-L 8N x 3L, {IMAGENET}", "FID 2.2, IS 254.3", 101, gmacs=3700),
    Published("elt_l_12x2", f"ELT-L 12N x 2L, {IMAGENET}", "FID 2.1, IS 281.8", 152, gmacs=3700),
    Published("elt_xl_7x4", f"ELT-XL 7N x 4L, {IMAGENET}", "FID 2.0, IS 266.1", 111, gmacs=3900),
    Published("dit_16", f"DiT of 16 layers, {LATENT}", "FID 3.87", 1100, "total"),
    Published("dit_32", f"DiT of 32 layers, {LATENT}", "FID 3.43", 2100, "total"),
    Published("elt_dit_1x32", f"ELT 1N x 32L, {LATENT}", "FID 10.30", 69, "total"),
    Published("elt_dit_4x8", f"ELT 4N x 8L, {LATENT}", "FID 3.96", 271, "total"),
    Published("elt_dit_8x4", f"ELT 8N x 4L, {LATENT}", "FID 3.16", 539, "total"),
    Published("elt_dit_16x2", f"ELT 16N x 2L, {LATENT}", "FID 2.83", 1100, "total"),
    Published("magvit_l", f"MAGVIT-L, {VIDEO}", "FVD 76 ± 2", 306, "total", gmacs=4300),
    Published("elt_video_6x4", f"ELT 6N x 4L, {VIDEO}", "FVD 72.8 ± 2.5", 76, gmacs=4300),
    Published("elt_video_6x6", f"ELT 6N x 6L, {VIDEO}", "FVD 60.8 ± 2.7", 76, gmacs=13000),
)


@dataclass(frozen=True)
class Computed:
    params_blocks: int
    params_total: int
    trunk: float  # MACs per sample
    linear: float  # the same without attention
    train_flops: float

    @property
    def h100_hours(self) -> float:
        return self.train_flops / (H100 * UTILISATION) / 3600


def compute_row(config: Config) -> Computed:
    net = network(config)
    spent = requested_depths(config.loops, config.sampler.steps)
    trunk = cost_per_sample(config, spent, partial(macs_trunk, net))
    attention = cost_per_sample(config, spent, partial(macs_attention, net))
    params = (params_blocks(net), params_total(net))
    return Computed(*params, trunk, trunk - attention, budget_flops(config))


def params_as_counted(row: Published, ours: Computed) -> int:
    """Our number of parameters, counted as the row counts them."""
    return ours.params_total if row.counting == "total" else ours.params_blocks


def format_deviation(ours: float, published: float) -> str:
    return f"{ours / published - 1:+.1%}"


# --- the table ------------------------------------------------------------------------------------


def cost_table() -> list[str]:
    head = ["row", "published", "params", "computed", "off", "counting"]
    head += ['"GFLOPs"', "G MACs computed", "off", "without attention", "off"]
    rows = [[*head, "training FLOPs", f"H100 hours at {UTILISATION:.0%}"]]
    for row, _, ours in compute_rows():
        params = params_as_counted(row, ours)
        own = [row.name, row.result, f"{row.params:,.0f}M", format_si(params)]
        own += [format_deviation(params / 1e6, row.params), row.counting]
        macs = ["" if row.gmacs is None else format_thousands(row.gmacs)]
        for value in (ours.trunk / 1e9, ours.linear / 1e9):
            deviation = "" if row.gmacs is None else format_deviation(value, row.gmacs)
            macs += [format_thousands(value), deviation]
        training = [f"{ours.train_flops:.2e}", f"{ours.h100_hours:,.0f}"]
        rows.append([*own, *macs, *training])
    return format_table(rows)


def format_thousands(gmacs: float) -> str:
    """As in the paper: 3.7k "GFLOPs"."""
    return f"{gmacs / 1000:,.4g}k"


def published_config(name: str) -> Config:
    """The configuration of a published row, without looking for its data on disk."""
    return resolve(to_config(compose_node(parse_overrides([f"experiment=paper/{name}"]))))


@cache
def compute_rows() -> list[tuple[Published, Config, Computed]]:
    configs = [published_config(row.name) for row in PUBLISHED]
    return [(row, c, compute_row(c)) for row, c in zip(PUBLISHED, configs, strict=True)]


def explain_deviations() -> list[str]:
    """One sentence for each group of published MACs that the formula does not reproduce."""
    rows = [row for row in compute_rows() if row[0].gmacs is not None]
    missed: dict[str, list[str]] = {}
    for row, config, ours in rows:
        if not is_reproduced(row, ours):
            others = [other.name for other, _, costs in rows if is_reproduced(row, costs)]
            missed.setdefault(explain(row, config, ours, others), []).append(row.name)
    return [f"{', '.join(names)}: {text}" for text, names in missed.items()]


def explain(row: Published, config: Config, ours: Computed, others: list[str]) -> str:
    assert row.gmacs is not None
    passes = sum(evaluations_per_step(config))
    whole, linear = (value / passes / 1e9 for value in (ours.trunk, ours.linear))
    text = (
        f"{config.model.depth} layers of width {config.model.width} on {config.data.tokens} tokens and the "
        f"class token take {whole:.1f}G MACs per pass, {linear:.1f}G without attention. "
        f"{config.sampler.steps} guided steps are {passes} passes, so {ours.linear / 1e12:.2f}k to "
        f"{ours.trunk / 1e12:.2f}k; the published {format_thousands(row.gmacs)} would be "
        f"{row.gmacs / whole:.0f} to {row.gmacs / linear:.0f} passes. The parameters agree, so depth and "
        "width are those of the paper, and no setting that it names gives its figure."
    )
    return text + (f" The figure equals that of {', '.join(others)}." if others else "")


def is_reproduced(row: Published, ours: Computed) -> bool:
    """Whether the computed MACs, with or without attention, are the published ones."""
    assert row.gmacs is not None
    return any(abs(value / 1e9 / row.gmacs - 1) <= CLOSE for value in (ours.trunk, ours.linear))


# --- the files ------------------------------------------------------------------------------------


def header_comment(row: Published, ours: Computed) -> str:
    """The comment at the top of the row's experiment file."""
    macs = "" if row.gmacs is None else f', {format_thousands(row.gmacs)} "GFLOPs" (MACs)'
    return f"""\
# @package _global_
# {row.title} (arXiv 2604.09168).
#     python -m eltlab.plan experiment=paper/{row.name}
# Published: {row.result}, {row.params:,.0f}M parameters{macs}.
# Computed: {format_si(ours.params_blocks)} parameters in the blocks, {format_si(ours.params_total)} in all; \
{format_si(ours.trunk)} MACs per sample in the layers.
# Training: {ours.train_flops:.2e} FLOPs, {ours.h100_hours:,.0f} H100 hours at {UTILISATION:.0%} of \
{H100 / 1e12:.0f} TFLOP/s.
"""


def experiment_file(row: Published) -> Path:
    return package_folder("conf") / "experiment" / "paper" / f"{row.name}.yaml"


def without_header(text: str) -> str:
    """The text of a file without the comment at its top."""
    lines = text.splitlines(keepends=True)
    return "".join(lines[next(n for n, line in enumerate(lines) if not line.startswith("#")) :])


def format_page() -> str:
    """The table and its notes."""
    return "\n".join([*cost_table(), *("\n" + fill(note, 110) for note in explain_deviations())])


def write_headers() -> None:
    for row, _, ours in compute_rows():
        file = experiment_file(row)
        write_atomic(file, header_comment(row, ours) + without_header(file.read_text()))


if __name__ == "__main__":
    if "--help" in sys.argv:
        print(__doc__.strip())
    else:
        print(format_page())
