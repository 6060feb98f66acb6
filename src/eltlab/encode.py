"""python -m eltlab.encode data.root=IMAGES tokenizer=taesd out=DIR: encodes images as latents or tokens.

The same command again continues where it was stopped. Under torchrun the processes share the shards.
To train on DIR: python -m eltlab.fit data=latents data.root=DIR objective=diffusion

examples:
  python -m eltlab.encode data.root=photos.zip data.size=128 tokenizer=taesd out=photos_latents
  python -m eltlab.encode data.root=photos.zip data.size=128 tokenizer=kmeans out=photos_tokens
  torchrun --nproc-per-node 8 -m eltlab.encode data.root=ILSVRC data.size=256 tokenizer=sd_vae …
"""

import sys
from pathlib import Path

from eltlab.common.command import run_command
from eltlab.config.encode_rules import NO_EFFECT
from eltlab.config.key_help import config_help, help_text
from eltlab.data.sets.image_listing import list_each_root_once
from eltlab.runs.compose_config import compose_encode


def usage(arguments: list[str]) -> str:
    return help_text(__doc__, config_help(arguments, "encode", hidden=NO_EFFECT))


def main(overrides: list[str]) -> None:
    with list_each_root_once():
        config = compose_encode(overrides)
        print(f"encode: {config.data.name} by {config.tokenizer.name}", file=sys.stderr, flush=True)

        from eltlab.evaluation.encode_set import encode

        encode(config, Path(config.out).expanduser().resolve())
    print(f"encoded: {config.out}")


if __name__ == "__main__":
    run_command(main, usage, "the same command writes the shards that are missing")
