"""Sources <-> rows of a dataset of URIs."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import pyarrow as pa

from vidlex.service.bulk.lists import URI_COLUMNS, find_columns, text_of
from vidlex.service.bulk.source import VideoSource

ORDER = "order"  # number of a source of the command line
_VERSION, _METADATA = "file_version", "metadata"


def schema() -> pa.Schema:
    text = pa.string()
    return pa.schema({ORDER: pa.int64(), "uri": text, "id": text, _VERSION: text, _METADATA: pa.map_(text, text)})


def table_of_sources(sources: Iterable[tuple[int, VideoSource]]) -> pa.Table:
    """Of sources with their numbers."""
    rows = [
        {
            ORDER: order,
            "uri": source.uri,
            "id": source.client_id,
            _VERSION: source.version,
            _METADATA: list(source.metadata.items()),
        }
        for order, source in sources
    ]
    return pa.Table.from_pylist(rows, schema=schema())


def sources_of(table: pa.Table) -> Iterator[VideoSource]:
    """Of tables of ``table_of_sources`` and of anyone's: a column ``uri``, ``path`` or ``video``, optionally ``id``.

    Further columns become metadata. Raises ValueError without a column of URIs or for a row that has none.
    """
    uri_column, id_column = find_columns(table.column_names)
    if uri_column is None:
        raise ValueError(f"no column {', '.join(URI_COLUMNS)}; there are {', '.join(table.column_names)}")
    for row in table.to_pylist():
        uri = row.pop(uri_column)
        if not isinstance(uri, str) or not uri:
            raise ValueError(f"a row without a {uri_column}")
        client_id = row.pop(id_column) if id_column is not None else None
        version = row.pop(_VERSION, None)
        row.pop(ORDER, None)
        metadata = dict(row.pop(_METADATA, None) or {})
        metadata |= {name: text_of(value) for name, value in row.items() if value is not None}
        yield VideoSource(uri, None if client_id is None else str(client_id), metadata, version)
