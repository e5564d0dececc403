"""What an engine in this process is opened with."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from vidlex.service.errors import InvalidParameter

if TYPE_CHECKING:
    from vidlex.service.settings import Settings


@dataclass(frozen=True, kw_only=True)
class LocalSetup:
    """Picklable. Exactly one of ``labels``, ``labels_file`` and ``namespace`` is given. None elsewhere: as the settings
    (``VIDLEX_*``) of the process that opens it say.
    """

    model: str | None = None
    labels: tuple[str | Mapping[str, Any], ...] | None = None  # names, or objects as in a .jsonl file of labels
    labels_file: Path | None = None
    namespace: str | None = None
    device: str | None = None
    precision: Literal["auto", "float32", "bfloat16", "float16"] | None = None
    decode_workers: int | None = None
    data_dir: Path | None = None

    def __post_init__(self) -> None:
        """Raises InvalidParameter."""
        if sum(given is not None for given in (self.labels, self.labels_file, self.namespace)) != 1:
            raise InvalidParameter("Give labels, a file of labels or a namespace, and one of them only")

    def settings(self) -> Settings:
        """Raises SettingsError."""
        from vidlex.service.settings import load_settings

        return load_settings(
            model=self.model,
            device=self.device,
            precision=self.precision,
            decode_workers=self.decode_workers,
            data_dir=self.data_dir,
        )
