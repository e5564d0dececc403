"""Which loaded model serves. The only place that decides it: requests ask here once, at their start."""

from __future__ import annotations

from service.errors import ModelLoading
from service.inference.served import ServedModel, Vocabulary


class Models:
    """Thread-safe."""

    def __init__(self) -> None:
        self._served: ServedModel | None = None

    @property
    def served(self) -> ServedModel | None:
        """None before the first model is ready."""
        return self._served

    def serve(self, model: ServedModel) -> None:
        """From the next request on."""
        self._served = model

    def take(self, namespace: str) -> Vocabulary:
        """The namespace's vocabulary of the served model, to be given back. See ServedModel.take."""
        return self._require().take(namespace)

    def take_open(self, namespace: str) -> Vocabulary | None:
        """As ``take``, without waiting: None when the namespace must be loaded first."""
        return self._require().take_open(namespace)

    def _require(self) -> ServedModel:
        if self._served is None:
            raise ModelLoading("The service is not ready yet; /readyz tells why")
        return self._served
