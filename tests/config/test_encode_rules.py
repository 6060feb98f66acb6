"""What encode refuses before it reads an image: its keys, and those of its tokenizer."""

import pytest
from omegaconf import OmegaConf
from support.encoded_sets import asked
from support.errors import fails
from support.tokenizers import NAMES, refused

from eltlab.common.package_info import package_folder
from eltlab.config.encode_rules import check_tokenizer
from eltlab.config.schema import TokenizerConfig
from eltlab.evaluation import encode_set as encoding
from eltlab.runs.compose_config import compose_encode


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (
            ["data=digits", "data.root=null"],
            "tokenizers encode colour images; give data.channels=3",
        ),
        (["data.size=15"], "choose a multiple of 2"),
        (["data=latents"], "data=latents: encoded already"),
        (["tokenizer=vqgan"], "did you mean"),
        (["tokenizer.name=taesd"], "write tokenizer=taesd"),
        (["tokenizer.codes=8"], "tokenizer.codes=8 applies to kmeans only"),
        (["tokenizer.base=taesd"], "tokenizer.base=taesd applies to kmeans only"),
        (["tokenizer.weights=null"], "tokenizer.weights=null: sd_vae needs weights"),
        (["data.channels=1"], "tokenizers encode colour images; give data.channels=3"),
        (["data.flip=true"], "data.flip has no effect in encode"),
        (["data.codebook=8"], "data.codebook has no effect in encode"),
        (["data.encoding=abc"], "data.encoding has no effect in encode"),
        (["metrics.images=/x"], "metrics.images has no effect in encode"),
        (["loops=2"], "unknown key loops=2"),
        (["shard=0"], "shard=0: must be at least 1"),
        (["metrics.samples=3"], "give at least two per class"),
    ],
)
def test_mistakes_are_explained(overrides, message, photo_folder, weights_folder, tmp_path) -> None:
    arguments = [*asked(photo_folder, weights_folder, tmp_path / "set"), *overrides]
    if overrides[0].startswith("data="):
        arguments = [text for text in arguments if not text.startswith(("data.root", "data.size"))]
        arguments += ["metrics.samples=20"]

    def run() -> None:
        encoding.encode(compose_encode(arguments), tmp_path / "set")

    assert message in fails(run)
    assert not (tmp_path / "set").exists()


def test_wrong_tokenizer_keys_are_refused() -> None:
    message = fails(compose_encode, ["data=cifar10", "out=x", "tokenizer.codes=8"])
    assert "codes=8" in message and message.endswith("Remove it.")


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (("teasd", "a/b"), "tokenizer.name=teasd: did you mean taesd?"),
        (("taesd",), "tokenizer.weights=null: taesd needs weights"),
        (("taesd", "no/where/at/all"), "tokenizer.weights=no/where/at/all: there is no such file"),
        (("taesd", "./nowhere"), "there is no such file"),
        (("taesd", "a/b", None, "sd_vae"), "tokenizer.base=sd_vae applies to kmeans only"),
        (("vqmodel", "a/b", None, None, 8), "tokenizer.codes=8 applies to kmeans only"),
        (("kmeans", "a/b", None, None, 8), "tokenizer.base=null: kmeans needs a continuous"),
        (("kmeans", "a/b", None, "vqmodel", 8), "tokenizer.base=vqmodel: kmeans needs a cont"),
        (("kmeans", "a/b", None, "taesd"), "tokenizer.codes=null: give at least 2"),
        (("kmeans", "a/b", None, "taesd", 1), "tokenizer.codes=1: give at least 2"),
    ],
)
def test_mistakes_in_a_configuration_are_named(config, message):
    refused(TokenizerConfig(*config), message)


def test_every_tokenizer_of_the_configuration_can_be_chosen():
    files = sorted((package_folder("conf") / "tokenizer").glob("*.yaml"))
    assert sorted(file.stem for file in files) == sorted(NAMES)
    for file in files:
        config = OmegaConf.merge(OmegaConf.structured(TokenizerConfig), OmegaConf.load(file))
        check_tokenizer(OmegaConf.to_object(config))
        assert config.name == file.stem
