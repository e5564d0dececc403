"""`Tagger`: tags videos in this process, from Python, in a notebook, and in the workers of Ray and Spark."""

from __future__ import annotations

import os
import threading
import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Self, Unpack

from vidlex.service.bulk.engine import EngineIdentity
from vidlex.service.bulk.local.faults import as_client_errors, as_client_errors_of_run
from vidlex.service.bulk.local.notebook import TagResults
from vidlex.service.bulk.local.setup import LocalSetup
from vidlex.service.bulk.options import TagOptions, TagOptionValues
from vidlex.service.bulk.paths import OnePath, Paths, source_of, sources_of
from vidlex.service.bulk.results import TagResult
from vidlex.service.bulk.rows import row_of, table_of
from vidlex.service.bulk.run import run
from vidlex.service.bulk.source import VideoSource

if TYPE_CHECKING:
    import pandas as pd
    import pyarrow as pa

    from vidlex.service.bulk.local.engine import LocalEngine
    from vidlex.service.bulk.saving import SavedRun


class Tagger:
    """Tags videos with the labels of a list, a file or a namespace of a label store: one of the three is given.

    The model is loaded, and the decode processes are started, when they are first used; ``close`` (or the end of a
    ``with`` block) stops them. Arguments that are not given are those of the ``VIDLEX_*`` settings. ``labels`` are
    names, or objects with ``name``, ``threshold``, ``categories`` and ``aliases``. Options by name, such as ``top_k``,
    are the defaults of all calls.

    Thread-safe and picklable: a copy in another process opens its own engine there.

    Every method raises a ``vidlex.errors.VidlexClientError`` by its code if no video can be tagged: for a model, labels
    or options that cannot be used. A video that cannot be tagged is a result with ``failure``.
    """

    def __init__(
        self,
        model: str | None = None,
        *,
        labels: Iterable[str | Mapping[str, Any]] | None = None,
        labels_file: str | os.PathLike[str] | None = None,
        namespace: str | None = None,
        device: str | None = None,
        precision: Literal["auto", "float32", "bfloat16", "float16"] | None = None,
        decode_workers: int | None = None,
        data_dir: str | os.PathLike[str] | None = None,
        **options: Unpack[TagOptionValues],
    ) -> None:
        with as_client_errors():
            self._setup = LocalSetup(
                model=model,
                labels=_listed(labels),
                labels_file=None if labels_file is None else Path(labels_file).absolute(),
                namespace=namespace,
                device=device,
                precision=precision,
                decode_workers=decode_workers,
                data_dir=None if data_dir is None else Path(data_dir).absolute(),
            )
            self._options = _changed(TagOptions(), options)
        self._start()

    def _start(self) -> None:
        self._lock = threading.Lock()
        self._engine: LocalEngine | None = None
        self._pid = 0
        self._stop: Callable[[], object] = lambda: None

    def __getstate__(self) -> tuple[LocalSetup, TagOptions]:
        return self._setup, self._options

    def __setstate__(self, state: tuple[LocalSetup, TagOptions]) -> None:
        self._setup, self._options = state
        self._start()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """The next use opens it again."""
        with self._lock:
            self._stop()
            self._engine = None

    def open(self) -> LocalEngine:
        """Loads the model and encodes the labels, unless that is done. Blocks."""
        with self._lock:
            if self._engine is None or self._pid != os.getpid():  # a forked process has none of the threads
                with as_client_errors():
                    from vidlex.service.bulk.local.opening import open_engine

                    engine = open_engine(self._setup)
                self._engine, self._pid = engine, os.getpid()
                self._stop = weakref.finalize(self, _close, engine, self._pid)
            return self._engine

    @property
    def identity(self) -> EngineIdentity:
        return self.open().identity

    def tag(self, paths: Paths, *, ordered: bool = True, **options: Unpack[TagOptionValues]) -> Iterator[TagResult]:
        """One result per video, in the order of ``paths`` or as completed.

        A single path may be a file, a folder, a pattern, a list file or a prefix of a bucket; the items of an iterable
        are one video each. Closing the iterator ends the work.
        """
        with as_client_errors():
            chosen = _changed(self._options, options)
            sources = sources_of(paths)
        return self._results(sources, self.open(), chosen, ordered)

    def _results(
        self, sources: Iterable[VideoSource], engine: LocalEngine, options: TagOptions, ordered: bool
    ) -> Iterator[TagResult]:
        # A method, so that this object, which stops the engine in its end, lives as long as the iterator.
        with as_client_errors_of_run():
            yield from run(sources, engine, options, ordered=ordered)

    def tag_to(
        self,
        paths: Paths,
        out: str | os.PathLike[str],
        *,
        resume: bool = False,
        retry_failed: bool = False,
        overwrite: bool = False,
        **options: Unpack[TagOptionValues],
    ) -> SavedRun:
        """Writes the rows of `vidlex tag` to a .parquet, .jsonl or .csv file, or to a folder. With ``resume`` what an
        earlier run has done is not done again, with ``retry_failed`` only what failed in it.
        """
        with as_client_errors():
            chosen = _changed(self._options, options)
            sources = sources_of(paths)
        engine = self.open()
        with as_client_errors_of_run():
            from vidlex.service.bulk.saving import tag_to

            where = os.fspath(out)
            return tag_to(engine, sources, chosen, where, resume=resume, retry_failed=retry_failed, overwrite=overwrite)

    def tag_all(self, paths: Paths, **options: Unpack[TagOptionValues]) -> TagResults:
        """All results in a list, which a notebook shows as a table with pictures of the videos."""
        return TagResults(self.tag(paths, **options))

    def tag_one(self, path: OnePath, **options: Unpack[TagOptionValues]) -> TagResult:
        (result,) = self.tag([path], **options)
        return result

    def tag_batch(self, uris: Iterable[OnePath], **options: Unpack[TagOptionValues]) -> pa.Table:
        """A row per video in their order, with the columns of `vidlex tag`. Needs pyarrow."""
        return table_of(row_of(result) for result in self.tag([source_of(uri) for uri in uris], **options))

    def __call__(self, batch: Any) -> Any:
        """For Ray's ``map_batches``: a batch with a column ``uri`` -> the rows of ``tag_batch``, as a pandas table if
        the batch is one, else as an Arrow table.
        """
        table = self.tag_batch(_uris_of(batch))
        return table.to_pandas() if hasattr(batch, "iloc") else table

    def map_in_pandas(self, frames: Iterable[pd.DataFrame]) -> Iterator[pd.DataFrame]:
        """For Spark's ``mapInPandas``."""
        for frame in frames:
            yield self(frame)


def _close(engine: LocalEngine, pid: int) -> None:
    if os.getpid() == pid:  # a fork has a copy, but not the threads and processes
        engine.close()


def _listed(labels: Iterable[str | Mapping[str, Any]] | None) -> tuple[str | Mapping[str, Any], ...] | None:
    from vidlex.service.errors import InvalidParameter

    if isinstance(labels, str):
        raise InvalidParameter("labels must be a list of names, not a single text")
    return None if labels is None else tuple(labels)


def _changed(options: TagOptions, values: TagOptionValues) -> TagOptions:
    """Raises TypeError for an unknown name, InvalidParameter."""
    changed = replace(options, **values)
    changed.check()
    return changed


def _uris_of(batch: Any) -> list[str]:
    column = batch["uri"]
    return column.to_pylist() if hasattr(column, "to_pylist") else [str(uri) for uri in column]
