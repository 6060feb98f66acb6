"""Keys that later versions add."""

from dataclasses import dataclass, field, replace

from eltlab.config.identity import identity
from eltlab.config.keys import key
from eltlab.config.schema import Config, DataConfig, FinalConfig, MaskedSamplerConfig
from eltlab.evaluation.protocol import protocol_id, sampling_protocol
from eltlab.runs.compose_config import compose


@dataclass
class LaterData(DataConfig):
    gamma: float = key(1.0, "a later key", since="9.9")


@dataclass
class LaterSection:
    power: int = key(2, "a later key of a later section", since="9.9")


@dataclass
class LaterSupervision(FinalConfig):
    later: LaterSection = field(default_factory=LaterSection)


@dataclass
class LaterSampler(MaskedSamplerConfig):
    order: str = key("random", "a later key", since="9.9")


def test_a_later_key_changes_no_id_at_its_default() -> None:
    config = compose(["supervision=final"])
    later = replace(
        config,
        data=LaterData(**vars(config.data)),
        supervision=LaterSupervision(**vars(config.supervision)),
        sampler=LaterSampler(**vars(config.sampler)),
    )
    assert identity(later) == identity(config)

    def protocol(of: Config) -> str:
        return protocol_id(sampling_protocol(of.sampler, 1000, "32-true", "extractor", "reference"))

    assert protocol(later) == protocol(config)
    later.data.gamma = 2.0
    assert identity(later) != identity(config)
    later.data.gamma = 1.0
    later.supervision.later.power = 3
    assert identity(later) != identity(config)
    later.sampler.order = "raster"
    assert protocol(later) != protocol(config)
