"""The numbers that shape a backbone. Its builder and the formulas of its cost read the same ones."""

from dataclasses import dataclass

from eltlab.config.schema import MODULATED_BLOCKS, Config, ModelConfig

TIME_FEATURES = 256  # sinusoidal features of the time, as in DiT


@dataclass(kw_only=True)
class Network(ModelConfig):
    """A resolved ModelConfig, with the numbers that the data and the loops add. Made by `network`."""

    block: str
    cond_width: int
    dropout: float
    masked: bool  # reads and predicts token ids, not pixels or latents
    unique_layers: int
    loops: int  # the trained count
    tokens: int  # in an image or clip, without the class or condition token
    patch_values: int  # P = channels · patch² · frame_patch
    codes: int
    classes: int

    @property
    def modulated(self) -> bool:
        return self.block in MODULATED_BLOCKS

    @property
    def layers(self) -> int:
        """Layers with their own weights."""
        return self.prelude + self.unique_layers + self.coda

    @property
    def trunk_tokens(self) -> int:
        """T: unmodulated blocks get the class (masked) or the condition as one more token in front."""
        return self.tokens + (0 if self.modulated else 1)

    @property
    def modulation(self) -> int:
        """Numbers per sample that condition one layer: adaln 6d, film 2m."""
        return {"adaln": 6 * self.width, "film": 2 * self.mlp_width}.get(self.block, 0)

    @property
    def outputs(self) -> int:
        """Numbers that the head predicts per token: K logits, or the P values of a patch."""
        return self.codes if self.masked else self.patch_values

    def depth_of(self, loops: int, exits_read: int = 1) -> int:
        """D: the layers that a pass runs. The coda runs once for every exit that is read."""
        return self.prelude + self.unique_layers * loops + self.coda * exits_read


def network(config: Config) -> Network:
    """The network of a resolved configuration."""
    assert config.unique_layers is not None  # resolve has set it
    return Network(
        **vars(config.model),
        masked=config.objective.INPUTS == "tokens",
        unique_layers=config.unique_layers,
        loops=config.loops,
        tokens=config.data.tokens,
        patch_values=config.data.patch_values,
        codes=config.data.codebook,
        classes=config.data.classes,
    )
