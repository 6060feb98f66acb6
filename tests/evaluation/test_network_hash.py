"""Files of weights inside packages, errors about such files, and the hash that names a network."""

from collections import OrderedDict
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from eltlab.evaluation.network_hash import installed_file, network_hash, unusable


def network(bias: float = 0.0) -> nn.Sequential:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        body, norm, head = nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 2)
    layers = nn.Sequential(OrderedDict(body=body, norm=norm, head=head))
    layers.head.bias.data.fill_(bias)
    return layers


@pytest.fixture
def packages(tmp_path, monkeypatch) -> Path:
    """A folder on sys.path with a package that must not be imported."""
    package = tmp_path / "package_with_weights"
    package.mkdir()
    (package / "__init__.py").write_text("raise SystemExit('imported')")
    monkeypatch.syspath_prepend(tmp_path)
    return tmp_path


def test_a_file_of_a_package_is_found_without_importing_it(packages):
    found = installed_file("package_with_weights", "weights/a.pt")
    assert found == packages / "package_with_weights/weights/a.pt"


def test_a_package_that_is_not_installed_has_no_file(packages):
    assert installed_file("package_that_nobody_has", "a.pt") is None
    # A folder of that name, without __init__.py, is found as a package too.
    (packages / "folder_with_weights").mkdir()
    assert installed_file("folder_with_weights", "a.pt") is None


def test_the_hash_does_not_depend_on_the_order_of_registration():
    layers = network()
    reordered = nn.Sequential(OrderedDict(reversed(list(layers.named_children()))))
    assert list(reordered.state_dict()) != list(layers.state_dict())
    assert network_hash(reordered) == network_hash(layers) == network_hash(network())


def test_the_hash_covers_each_value_with_its_name_type_and_shape():
    layers = network()
    changed: list[dict[str, Tensor]] = []
    for name, value in layers.state_dict().items():
        if not name.endswith("num_batches_tracked"):
            changed.append({name: value + 1})
    changed.append({"body.bias": layers.norm.bias.data, "norm.bias": layers.body.bias.data})
    hashes = [network_hash(layers), network_hash(network().double())]
    for tensors in changed:
        other = network()
        other.load_state_dict(tensors, strict=False)
        hashes.append(network_hash(other))
    renamed = nn.Sequential(OrderedDict((f"{name}_2", part) for name, part in layers.named_children()))
    flat = network()
    flat.head.weight = nn.Parameter(flat.head.weight.reshape(4, 2))
    hashes += [network_hash(renamed), network_hash(flat)]
    assert len(set(hashes)) == len(hashes) > 10


def test_the_counter_of_batch_norm_is_not_part_of_the_hash():
    layers = network()
    before = network_hash(layers)
    layers.norm.num_batches_tracked += 7
    assert network_hash(layers) == before


def test_excluded_tensors_do_not_change_the_hash():
    one, other = network(bias=0), network(bias=1)
    assert network_hash(one) != network_hash(other)
    assert network_hash(one, ("head.",)) == network_hash(other, ("head.",)) != network_hash(one)
    # Only a name that starts so is excluded.
    assert network_hash(one, ("bias",)) == network_hash(one)


def test_a_problem_with_a_file_is_one_line_with_the_fix():
    error = unusable(Path("a.pt"), "there is no such file", "another file")
    assert str(error) == "metrics.weights=a.pt: there is no such file; give another file"


def test_tensors_that_do_not_fit_are_a_short_line_that_names_the_first():
    with pytest.raises(RuntimeError) as caught:
        network().load_state_dict({f"unknown_{n}": torch.zeros(1) for n in range(50)})
    assert "\n" in str(caught.value)
    message = str(unusable(Path("a.pt"), caught.value, "another file", "a perceptron"))
    assert message.startswith("metrics.weights=a.pt: not the tensors of a perceptron (Missing key")
    assert "body.weight" in message and message.endswith("; give another file")
    assert "\n" not in message and len(message) < 200
