"""Which tokenizers there are, and what a configuration may ask of each. Free of torch."""

from eltlab.common.errors import UserError, suggest
from eltlab.config.schema import TokenizerConfig

CONTINUOUS = ("taesd", "sd_vae")
NAMES = (*CONTINUOUS, "vqmodel", "maskgit_vqgan", "kmeans")


def check(config: TokenizerConfig) -> None:
    """Raises UserError where no tokenizer can be meant; reads no file."""
    name, base, codes = config.name, config.base, config.codes
    if name not in NAMES:
        raise UserError(f"tokenizer.name={name}: {suggest(name, NAMES, 'tokenizers')}")
    if config.weights is None:
        raise UserError(
            f"tokenizer.weights=null: {name} needs weights; give a path, or a hub id (owner/name)"
        )
    if name != "kmeans":
        for key, value in (("base", base), ("codes", codes)):
            if value is not None:
                raise UserError(f"tokenizer.{key}={value}: only kmeans has it; leave it out")
        return
    if base not in CONTINUOUS:
        raise UserError(
            f"tokenizer.base={base or 'null'}: kmeans is over a continuous tokenizer; "
            f"choose {' or '.join(CONTINUOUS)}"
        )
    if codes is None or codes < 2:
        raise UserError(f"tokenizer.codes={codes or 'null'}: give at least 2")
