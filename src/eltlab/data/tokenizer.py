"""A k-means codebook over pixel patches: images ↔ tokens for the masked models."""

import io
import math

import numpy as np
import torch
from torch import Tensor

from eltlab.data.images import ImageSet, to_float, to_uint8
from eltlab.errors import UserError
from eltlab.files import cache_dir, digest, write_atomic
from eltlab.patches import patchify, unpatchify


class PatchCodebook:
    """Codes [K, C·p·p] in the range of the images, [−1, 1]; token (i, j) covers patch (i, j)."""

    def __init__(self, codes: Tensor, channels: int, patch: int) -> None:
        self.codes, self.channels, self.patch = codes, channels, patch
        self.hash = digest(codes.cpu().numpy(), channels, patch)

    def encode(self, images: Tensor, batch: int = 1024) -> Tensor:
        """uint8 images [N, C, H, W] → ids [N, (H/p)·(W/p)] of the nearest codes."""
        codes = self.codes.to(images.device)
        ids = [
            torch.cdist(
                patchify(to_float(part), self.patch), codes.expand(len(part), -1, -1)
            ).argmin(dim=-1)
            for part in images.split(batch)
        ]
        return torch.cat(ids)

    def decode(self, ids_NT: Tensor) -> Tensor:
        """ids [N, T] → uint8 images [N, C, H, W]."""
        pixels_NTP = self.codes.to(ids_NT.device)[ids_NT]
        return to_uint8(unpatchify(pixels_NTP, self.patch, self.channels))


def fit_codebook(train: ImageSet, patch: int, codebook: int) -> PatchCodebook:
    """The codebook of a training split, from the cache or fitted (seed 0) and cached."""
    import sklearn
    from sklearn.cluster import MiniBatchKMeans

    channels = train.images.shape[1]
    key = digest(train.hash, patch, codebook, sklearn.__version__)
    path = cache_dir() / "codebooks" / f"{train.name.replace('/', '-')}-{key}.npy"
    if not path.is_file():
        vectors = patchify(to_float(train.images), patch).flatten(0, 1).numpy()
        distinct = len(np.unique(vectors, axis=0))
        if codebook > distinct:
            raise UserError(
                f"data.codebook={codebook}: the training split has {distinct} distinct "
                f"{patch}x{patch} patches; choose at most that many codes"
            )
        means = MiniBatchKMeans(codebook, random_state=0, n_init=3, batch_size=4096).fit(vectors)
        buffer = io.BytesIO()
        np.save(buffer, means.cluster_centers_.astype(np.float32))
        write_atomic(path, buffer.getvalue())
    codes = torch.from_numpy(np.load(path, allow_pickle=False))
    return PatchCodebook(codes, channels, patch)


def psnr(images: Tensor, reconstructed: Tensor) -> float:
    """Peak signal-to-noise ratio in dB of uint8 images, from the mean squared error of all of them."""
    error = (images.double() - reconstructed.double()).square().mean().item()
    return math.inf if error == 0 else 10 * math.log10(255**2 / error)
