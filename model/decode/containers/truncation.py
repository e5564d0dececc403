"""What a container's own structure tells about its end: bytes that are missing, a second recording that follows."""

from __future__ import annotations

import struct
from collections.abc import Callable

from vidlex.model.decode.containers.formats import WEBP
from vidlex.model.decode.containers.structure import ASF_HEADER_BYTES, Element, Structure
from vidlex.model.decode.source import VideoSource


def container_ends_early(source: VideoSource, demuxer: str) -> bool | None:
    """Whether data of the video is missing at the end; None if the container does not tell. Raises OSError."""
    find = _FINDERS.get(demuxer)
    if find is None:
        return None
    with source.open("rb") as file:
        return find(Structure(file))


def has_second_recording(source: VideoSource, demuxer: str) -> bool:
    """Whether another complete file follows, as after `cat a.mp4 b.mp4`, where a demuxer reads the first only. For MP4,
    FLV and ASF; the demuxers of other containers go on into the next recording. Raises OSError."""
    find = _SECONDS.get(demuxer)
    if find is None:
        return False
    with source.open("rb") as file:
        return find(Structure(file))


# --- MP4 -------------------------------------------------------------------------------------------------------------

_DATA_BOXES = (b"mdat", b"moof", b"moov")
_MAX_CHUNK_SAMPLES = 100_000


def _mp4_ends_early(structure: Structure) -> bool | None:
    movie = last = None
    for box in structure.mp4_boxes(structure.whole_file):
        if box.kind in _DATA_BOXES:
            last = box
            if box.end > structure.num_bytes:
                return True
        if box.kind == b"moov" and movie is None:
            movie = box
    if movie is None:
        return None
    if last is not None and last.kind == b"moof":  # the pictures that it describes would follow
        return True
    # a file without its last box looks complete
    tracks = structure.find_boxes(movie, b"trak", b"mdia")
    return any(
        _end_of_samples(structure, media) > structure.num_bytes for media in tracks if _is_video(structure, media)
    )


def _is_video(structure: Structure, media: Element) -> bool:
    handlers = structure.find_boxes(media, b"hdlr")
    return any(structure.content(handler, 12)[8:] == b"vide" for handler in handlers)


def _end_of_samples(structure: Structure, media: Element) -> int:
    """Where the last chunk of the track ends; 0 if its tables are missing or wrong."""
    for table in structure.find_boxes(media, b"minf", b"stbl"):
        tables = {box.kind: box for box in structure.mp4_boxes(table)}
        offsets = tables.get(b"stco") or tables.get(b"co64")
        if offsets is None or b"stsz" not in tables or b"stsc" not in tables:
            return 0
        offset_bytes = 4 if offsets.kind == b"stco" else 8
        last_offset = _last_entry(structure, offsets, 8, _count(structure, offsets), offset_bytes)
        chunks = tables[b"stsc"]
        num_samples = _last_entry(structure, chunks, 8, _count(structure, chunks), 12) >> 32 & 0xFFFFFFFF
        return last_offset + _size_of_last(structure, tables[b"stsz"], num_samples) if last_offset else 0
    return 0


def _size_of_last(structure: Structure, sizes: Element, num_samples: int) -> int:
    head = structure.content(sizes, 12)
    fixed_size, count = int.from_bytes(head[4:8], "big"), int.from_bytes(head[8:12], "big")
    num_samples = min(num_samples, count, _MAX_CHUNK_SAMPLES)
    if fixed_size:
        return fixed_size * num_samples
    first = sizes.start + 12 + 4 * (count - num_samples)
    return sum(value for (value,) in struct.iter_unpack(">I", structure.read_whole(first, 4 * num_samples)))


def _count(structure: Structure, table: Element) -> int:
    return int.from_bytes(structure.content(table, 8)[4:], "big")


def _last_entry(structure: Structure, table: Element, skip: int, count: int, num_bytes: int) -> int:
    place = table.start + skip + (count - 1) * num_bytes
    if count < 1 or place + num_bytes > table.end:
        return 0
    return int.from_bytes(structure.read(place, num_bytes), "big")


# --- Matroska --------------------------------------------------------------------------------------------------------

_SEGMENT, _CLUSTER = b"\x18\x53\x80\x67", b"\x1f\x43\xb6\x75"


def _matroska_ends_early(structure: Structure) -> bool | None:
    """A segment of unknown size, as live recordings have, can end anywhere between clusters of known size."""
    for segment in structure.matroska_elements(structure.whole_file):
        if segment.kind != _SEGMENT:
            continue
        if segment.has_size:
            return segment.end > structure.num_bytes
        last = None
        for element in structure.matroska_elements(segment):
            last = element
        if last is None or structure.is_exhausted or not last.has_size:
            return None
        return True if last.end > structure.num_bytes else None
    return None


# --- RIFF: AVI, WebP -------------------------------------------------------------------------------------------------


def _avi_ends_early(structure: Structure) -> bool | None:
    """The size of RIFF is often off by a few bytes, and the index after the pictures may be missing: the list of the
    pictures counts. It has no size in a recording that was not finished."""
    is_early = None
    for riff in structure.riff_chunks(structure.whole_file):
        if riff.end <= riff.start:
            return None
        pictures = next((chunk for chunk in structure.riff_chunks(riff) if chunk.kind == b"movi"), None)
        if pictures is None:
            is_early = True if riff.end > structure.num_bytes else is_early
        else:
            is_early = pictures.end > structure.num_bytes if pictures.end > pictures.start else None
    return is_early


def _webp_ends_early(structure: Structure) -> bool | None:
    return any(riff.end > structure.num_bytes for riff in structure.riff_chunks(structure.whole_file))


# --- others ----------------------------------------------------------------------------------------------------------

_ASF_FILE_PROPERTIES = bytes.fromhex("a1dcab8c47a9cf118ee400c00c205365")
_DV_FRAME_BYTES = {0: 120_000, 1: 144_000}  # 525 lines, 625 lines
_OGG_TAIL_BYTES = 128 * 1024  # more than a page
_FLV_TAG_HEADER_BYTES = 11


def _asf_ends_early(structure: Structure) -> bool | None:
    for item in structure.asf_objects(structure.whole_file, skip=ASF_HEADER_BYTES):
        if item.kind == _ASF_FILE_PROPERTIES:
            fields = structure.content(item, 68)
            if len(fields) < 68 or fields[64] & 1:  # of a broadcast, whose size was not known
                return None
            return int.from_bytes(fields[16:24], "little") > structure.num_bytes
    return None


def _dv_ends_early(structure: Structure) -> bool | None:
    head = structure.read(0, 4)
    return structure.num_bytes % _DV_FRAME_BYTES[head[3] >> 7] != 0 if len(head) == 4 else None


def _ogg_ends_early(structure: Structure) -> bool | None:
    """Pages name their sizes; whether a page follows after a whole one, the file does not tell."""
    start = max(0, structure.num_bytes - _OGG_TAIL_BYTES)
    tail = structure.read(start, _OGG_TAIL_BYTES)
    page = tail.rfind(b"OggS\0")
    if page < 0:
        return None
    segments = tail[page + 27 : page + 27 + tail[page + 26]] if page + 26 < len(tail) else b""
    is_whole = page + 26 < len(tail) and len(segments) == tail[page + 26]
    return None if is_whole and page + 27 + len(segments) + sum(segments) <= len(tail) else True


def _gif_ends_early(structure: Structure) -> bool | None:
    """Some writers leave out the trailer after the last picture."""
    is_cut = structure.gif_is_cut()
    return None if structure.is_exhausted else is_cut


def _flv_ends_early(structure: Structure) -> bool:
    """Whether the last bytes are not the size of a whole tag before them."""
    end = structure.num_bytes
    size = int.from_bytes(structure.read(max(0, end - 4), 4), "big")
    if not _FLV_TAG_HEADER_BYTES <= size <= end - 4:
        return True
    tag = structure.read(end - 4 - size, 4)
    return int.from_bytes(tag[1:], "big") + _FLV_TAG_HEADER_BYTES != size


# --- second recordings -----------------------------------------------------------------------------------------------

_ASF_HEADER = bytes.fromhex("3026b2758e66cf11a6d900aa0062ce6c")


def _mp4_has_second(structure: Structure) -> bool:
    """Two movies, the second of which has a file type of its own before it."""
    num_movies, is_new_file = 0, False
    for box in structure.mp4_boxes(structure.whole_file):
        if box.kind == b"ftyp":
            is_new_file = True
        elif box.kind == b"moov":
            num_movies += is_new_file or num_movies == 0
            is_new_file = False
    return num_movies > 1


def _flv_has_second(structure: Structure) -> bool:
    return any(structure.read(tag.start - 11, 4) == b"FLV\x01" for tag in structure.flv_tags() if tag.kind == b"F")


def _asf_has_second(structure: Structure) -> bool:
    headers = [item for item in structure.asf_objects(structure.whole_file) if item.kind == _ASF_HEADER]
    return len(headers) > 1


_FINDERS: dict[str, Callable[[Structure], bool | None]] = {
    "mov": _mp4_ends_early,
    "matroska": _matroska_ends_early,
    "avi": _avi_ends_early,
    WEBP: _webp_ends_early,
    "asf": _asf_ends_early,
    "dv": _dv_ends_early,
    "ogg": _ogg_ends_early,
    "gif": _gif_ends_early,
    "flv": _flv_ends_early,
}

_SECONDS: dict[str, Callable[[Structure], bool]] = {
    "mov": _mp4_has_second,
    "flv": _flv_has_second,
    "asf": _asf_has_second,
}
