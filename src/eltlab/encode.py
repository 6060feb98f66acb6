"""python -m eltlab.encode data.root=IMAGES tokenizer=taesd out=DIR: images to latents or tokens, once."""

import sys
from pathlib import Path

from omegaconf import OmegaConf

from eltlab.cli import options
from eltlab.common.command import run_command
from eltlab.config.parsing import compose_node
from eltlab.config.schema import EncodeConfig
from eltlab.data.sets.image_listing import list_each_root_once
from eltlab.runs.composing import compose_encode


def usage() -> str:
    keys = OmegaConf.to_yaml(compose_node([], "encode", EncodeConfig())).splitlines()
    lines = "\n".join(f"  {line}" for line in keys)
    return (
        f"{__doc__}\n\n"
        "The same command again goes on where it was stopped. Under torchrun the processes share the\n"
        "shards. DIR then trains: python -m eltlab.fit data=latents data.root=DIR objective=diffusion\n\n"
        f"choices:\n{options('encode')}\n\nkeys and their defaults (write section.key=value):\n{lines}\n\n"
        "examples:\n"
        "  python -m eltlab.encode data.root=photos.zip data.size=128 tokenizer=taesd out=photos_latents\n"
        "  python -m eltlab.encode data.root=photos.zip data.size=128 tokenizer=kmeans out=photos_tokens\n"
        "  torchrun --nproc-per-node 8 -m eltlab.encode data.root=ILSVRC data.size=256 tokenizer=sd_vae …"
    )


def main(overrides: list[str]) -> None:
    with list_each_root_once():
        config = compose_encode(overrides)
        print(f"encode: {config.data.name} by {config.tokenizer.name}", file=sys.stderr, flush=True)

        from eltlab.evaluation.encode_set import encode

        encode(config, Path(config.out).expanduser().resolve())
    print(f"encoded: {config.out}")


if __name__ == "__main__":
    run_command(main, usage, "the same command writes the shards that are missing")
