"""Which tokenizers there are, and which keys each requires."""

from eltlab.common.errors import UserError, suggest
from eltlab.config.schema import TokenizerConfig

CONTINUOUS = ("taesd", "sd_vae")
NAMES = (*CONTINUOUS, "vqmodel", "maskgit_vqgan", "kmeans")


def check_tokenizer(config: TokenizerConfig) -> None:
    """Raises UserError if the keys describe no tokenizer. Reads no file."""
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
                raise UserError(f"tokenizer.{key}={value} applies to kmeans only. Remove it.")
        return
    if base not in CONTINUOUS:
        raise UserError(
            f"tokenizer.base={base or 'null'}: kmeans needs a continuous tokenizer; "
            f"choose {' or '.join(CONTINUOUS)}"
        )
    if codes is None or codes < 2:
        raise UserError(f"tokenizer.codes={codes or 'null'}: give at least 2")
