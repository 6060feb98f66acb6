"""The configuration. Extension files (docs/extending.md) import what they need from here."""

from eltlab.config.schema import Config as Config
from eltlab.config.schema import DeepConfig as DeepConfig
from eltlab.config.schema import DiffusionConfig as DiffusionConfig
from eltlab.config.schema import DiffusionSamplerConfig as DiffusionSamplerConfig
from eltlab.config.schema import FinalConfig as FinalConfig
from eltlab.config.schema import FlowConfig as FlowConfig
from eltlab.config.schema import FlowSamplerConfig as FlowSamplerConfig
from eltlab.config.schema import IlsdConfig as IlsdConfig
from eltlab.config.schema import MaskedConfig as MaskedConfig
from eltlab.config.schema import MaskedSamplerConfig as MaskedSamplerConfig
from eltlab.config.schema import ObjectiveConfig as ObjectiveConfig
from eltlab.config.schema import RandomDepthConfig as RandomDepthConfig
from eltlab.config.schema import SamplerConfig as SamplerConfig
from eltlab.config.schema import Spent as Spent
from eltlab.config.schema import SupervisionConfig as SupervisionConfig
