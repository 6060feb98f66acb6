"""What a configuration is compared with: the unique-layer models of equal compute and of equal size."""

import math
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from eltlab.config.cost.flops import params_total
from eltlab.config.network_shape import network
from eltlab.config.schema import Config, FinalConfig

# Relative to the parameters. If the iso-parameter twin misses by more, its layers are narrowed.
TOLERANCE = 0.01


def twin(config: Config) -> Config:
    """The iso-compute twin: as many layers per pass, each with its own weights (L = 1)."""
    assert config.unique_layers is not None
    return unloop(config, config.unique_layers * config.loops)


def iso_params(config: Config) -> Config:
    """The iso-parameter twin: the unique-layer model (L = 1) of the same size.

    It has N layers of the same width. They cannot replace the parameters of an injection or a loop
    embedding. If they therefore miss the size by more than TOLERANCE, the twin has one more layer, all
    its layers are narrower, and the MLP width makes up for the rest.
    """
    assert config.unique_layers is not None
    if config.loops == 1:
        return config
    wanted = count_params(config)
    fewer = unloop(config, config.unique_layers)
    if abs(count_params(fewer) / wanted - 1) <= TOLERANCE:
        return fewer
    candidates = [fewer, *narrower(unloop(config, config.unique_layers + 1))]
    closest = min(candidates, key=lambda other: abs(count_params(other) - wanted))
    mlp_width = closest.model.mlp_width
    per_unit = count_params(replace_model(closest, mlp_width=mlp_width + 1)) - count_params(closest)
    missing = round((wanted - count_params(closest)) / per_unit)
    return replace_model(closest, mlp_width=max(1, mlp_width + missing))


def replace_model(config: Config, **changes: Any) -> Config:
    return replace(config, model=replace(config.model, **changes))


def count_params(config: Config) -> int:
    return params_total(network(config))


def unloop(config: Config, layers: int) -> Config:
    """A model of this many unique layers that run once."""
    model = config.model
    depth = model.prelude + layers + model.coda
    return replace(
        config,
        model=replace(model, depth=depth, inject_input=False, loop_embedding=False),
        supervision=FinalConfig(name="final"),
        loops=1,
        unique_layers=layers,
        sampler=replace(config.sampler, loops=None),
    )


def narrower(config: Config) -> Iterator[Config]:
    """The same layers at every width up to this one that the heads divide.

    The MLP keeps its ratio to the width. The condition keeps its width, unless that was the model's.
    """
    model = config.model
    assert model.cond_width is not None
    # Sine-cosine positions of rows and columns require a multiple of 4 (config/rules.py).
    step = model.heads if config.objective.INPUTS == "tokens" else math.lcm(model.heads, 4)
    for width in range(step, model.width + 1, step):
        cond_width = width if model.cond_width == model.width else model.cond_width
        mlp_width = max(1, round(width * model.mlp_width / model.width))
        yield replace_model(config, width=width, mlp_width=mlp_width, cond_width=cond_width)
