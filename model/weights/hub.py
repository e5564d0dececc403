"""Folders of the model hub: safetensors, configuration and tokenizer, without code."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from vidlex.model.weights.cache import WeightsError

MODEL_FILES = ("*.safetensors", "*.json", "*.jinja", "tokenizer*", "*.model", "vocab*", "merges.txt")


def fetch_repository(
    name: str, *, revision: str | None = None, patterns: Sequence[str] = MODEL_FILES, show_bar: bool | None = None
) -> Path:
    """The local folder of the model hub's ``ORG/NAME``, with those of its files. Raises WeightsError.

    ``show_bar`` draws the download's progress on stderr, also where TQDM_DISABLE is set, or prevents it; None: as the
    hub's library does.
    """
    from huggingface_hub import constants, snapshot_download

    options: dict[str, Any] = {} if show_bar is None else {"tqdm_class": _bar(is_shown=show_bar)}
    try:
        return Path(
            snapshot_download(
                name, revision=revision, allow_patterns=list(patterns), ignore_patterns=["*/*"], **options
            )
        )
    except Exception as error:  # HTTP, validation, offline and missing-file errors share no base class
        if constants.HF_HUB_OFFLINE:
            raise WeightsError(
                f"{name!r} is not in {constants.HF_HUB_CACHE}, and HF_HUB_OFFLINE forbids to download it. Run `vidlex "
                "weights fetch` with HF_HUB_OFFLINE=0 once (in the deployment: `docker compose run --rm fetch`), or "
                "give the path of a local model folder."
            ) from error
        raise WeightsError(
            f"could not fetch {name!r} from the model hub ({type(error).__name__}). Check the name and the network, or "
            "give the path of a local model folder."
        ) from error


def _bar(*, is_shown: bool) -> type[Any]:
    from tqdm import tqdm  # type: ignore[import-untyped]

    class Bar(tqdm):  # type: ignore[misc]
        def __init__(self, *arguments: Any, **options: Any) -> None:
            super().__init__(*arguments, **{**options, "disable": not is_shown})

    return Bar
