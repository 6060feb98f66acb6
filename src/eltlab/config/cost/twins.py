"""What a configuration is compared with: the unique-layer models of equal compute and of equal size."""

import math
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from eltlab.config.cost.flops import params_total
from eltlab.config.network import network
from eltlab.config.schema import Config, FinalConfig

MISSED = 0.01  # of the parameters, beyond which the layers of the iso-parameter twin are narrowed


def twin(config: Config) -> Config:
    """The iso-compute twin: as many layers a pass, each with weights of its own (L = 1)."""
    assert config.unique_layers is not None
    return unlooped(config, config.unique_layers * config.loops)


def iso_params(config: Config) -> Config:
    """The iso-parameter twin: the unique-layer model (L = 1) of the same size.

    Fewer layers, N of them, at the same width. What a loop has beside its layers (injection, loop
    embedding) has no place in it: where it therefore misses the size by more than MISSED, it has one
    layer more, all of them narrower, and an MLP that makes up the rest.
    """
    assert config.unique_layers is not None
    if config.loops == 1:
        return config
    wanted = size(config)
    fewer = unlooped(config, config.unique_layers)
    if abs(size(fewer) / wanted - 1) <= MISSED:
        return fewer
    narrower = [fewer, *narrowed(unlooped(config, config.unique_layers + 1))]
    nearest = min(narrower, key=lambda other: abs(size(other) - wanted))
    mlp_width = nearest.model.mlp_width
    a_unit = size(with_model(nearest, mlp_width=mlp_width + 1)) - size(nearest)
    missing = round((wanted - size(nearest)) / a_unit)
    return with_model(nearest, mlp_width=max(1, mlp_width + missing))


def with_model(config: Config, **changes: Any) -> Config:
    return replace(config, model=replace(config.model, **changes))


def size(config: Config) -> int:
    return params_total(network(config))


def unlooped(config: Config, layers: int) -> Config:
    """This many unique layers, applied once."""
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


def narrowed(config: Config) -> Iterator[Config]:
    """The same layers at every smaller width that the heads divide; the MLP keeps its ratio, and the
    condition its width unless it was that of the model."""
    model = config.model
    assert model.cond_width is not None
    # Positions in 2-D take widths that four divides (rules.py).
    step = model.heads if config.objective.INPUTS == "tokens" else math.lcm(model.heads, 4)
    for width in range(step, model.width + 1, step):
        cond_width = width if model.cond_width == model.width else model.cond_width
        mlp_width = max(1, round(width * model.mlp_width / model.width))
        yield with_model(config, width=width, mlp_width=mlp_width, cond_width=cond_width)
