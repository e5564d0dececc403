"""Tells by the bytes of a file whether its pictures are encrypted.

A demuxer hands encrypted packets to the decoder like any others, and some of them decode to noise.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator
from itertools import islice
from typing import BinaryIO

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray

from vidlex.model.decode.containers.structure import ASF_HEADER_BYTES, Element, Structure
from vidlex.model.decode.source import VideoSource

_TS_WINDOW_BYTES = 384 * 1024  # about 2000 packets
_PS_WINDOW_BYTES = 1 << 20
_TS_PACKET_BYTES = 188
_NUM_PIDS = 1 << 13
_VIDEO_STREAM_TYPES = frozenset((0x01, 0x02, 0x10, 0x1B, 0x20, 0x24, 0x33, 0x42, 0xD1, 0xEA))
_SAMPLE_AES_VIDEO = 0xDB


def encryption_of(source: VideoSource, demuxer: str) -> str | None:
    """The scheme's short name, or None if the video is in the clear or a scheme of an unknown kind. Raises OSError."""
    find = _FINDERS.get(demuxer)
    if find is None:
        return None
    with source.open("rb") as file:
        return find(file)


def _windows(file: BinaryIO, window_bytes: int) -> Iterator[bytes]:
    """Bytes at the start, in the middle and at the end."""
    last_start = max(0, file.seek(0, io.SEEK_END) - window_bytes)
    for start in sorted({0, last_start // 2, last_start}):
        file.seek(start)
        yield file.read(window_bytes)


# --- MP4: ISO/IEC 14496-12, 8.12 and 23001-7 -------------------------------------------------------------------------

_COMMON_SCHEMES = ("cenc", "cbcs", "cens", "cbc1", "piff")
_VISUAL_ENTRY_BYTES = 78


def _of_mp4(file: BinaryIO) -> str | None:
    structure = Structure(file)
    for table in structure.find_boxes(structure.whole_file, b"moov", b"trak", b"mdia", b"minf", b"stbl", b"stsd"):
        for entry in structure.mp4_boxes(table, skip=8):
            if entry.kind in (b"encv", b"drmi"):
                return _mp4_scheme(structure, entry)
    return None


def _mp4_scheme(structure: Structure, entry: Element) -> str:
    boxes = Element(entry.kind, entry.start + _VISUAL_ENTRY_BYTES, entry.end)
    for box in structure.find_boxes(boxes, b"sinf", b"schm"):
        scheme = structure.content(box, 8)[4:]
        if scheme.decode("latin-1") in _COMMON_SCHEMES:
            return f"Common Encryption ({scheme.decode()})"
    return "FairPlay" if entry.kind == b"drmi" else "MP4 encryption"


# --- Matroska: RFC 9559, 5.1.4.1.31 ----------------------------------------------------------------------------------

_SEGMENT, _TRACKS, _TRACK = b"\x18\x53\x80\x67", b"\x16\x54\xae\x6b", b"\xae"
_TRACK_TYPE, _VIDEO_TRACK = b"\x83", 1
_ENCODINGS, _ENCODING, _ENCODING_KIND, _ENCRYPTION = b"\x6d\x80", b"\x62\x40", b"\x50\x33", b"\x50\x35"


def _of_matroska(file: BinaryIO) -> str | None:
    structure = Structure(file)
    for segment in structure.matroska_elements(structure.whole_file):
        for tracks in structure.matroska_elements(segment) if segment.kind == _SEGMENT else ():
            if tracks.kind == _TRACKS:
                found = any(_is_encrypted(structure, track) for track in structure.matroska_elements(tracks))
                return "Matroska encryption" if found else None
    return None


def _is_encrypted(structure: Structure, track: Element) -> bool:
    is_video = is_encrypted = False
    for element in structure.matroska_elements(track) if track.kind == _TRACK else ():
        if element.kind == _TRACK_TYPE:
            is_video = _number(structure, element) == _VIDEO_TRACK
        elif element.kind == _ENCODINGS:
            for encoding in structure.matroska_elements(element):
                is_encrypted |= encoding.kind == _ENCODING and _says_encrypted(structure, encoding)
    return is_video and is_encrypted


def _says_encrypted(structure: Structure, encoding: Element) -> bool:
    return any(
        fact.kind == _ENCRYPTION or (fact.kind == _ENCODING_KIND and _number(structure, fact) == 1)
        for fact in structure.matroska_elements(encoding)
    )


def _number(structure: Structure, element: Element) -> int:
    return int.from_bytes(structure.content(element, 8), "big")


# --- MPEG transport stream: ISO/IEC 13818-1, 2.4.3.3 -----------------------------------------------------------------


def _of_transport_stream(file: BinaryIO) -> str | None:
    num_clear, num_scrambled = np.zeros(_NUM_PIDS, np.int64), np.zeros(_NUM_PIDS, np.int64)
    types: dict[int, int] = {}  # PID -> stream type
    for window in _windows(file, _TS_WINDOW_BYTES):
        packets = _ts_packets(window)
        packets = packets[packets[:, 3] & 0x10 != 0]  # with a payload
        is_clear = packets[:, 3] >> 6 == 0
        pids = (packets[:, 1] & 0x1F).astype(np.int64) << 8 | packets[:, 2]
        num_clear += np.bincount(pids[is_clear], minlength=_NUM_PIDS)
        num_scrambled += np.bincount(pids[~is_clear], minlength=_NUM_PIDS)
        for packet in packets[is_clear & (packets[:, 1] & 0x40 != 0)]:  # begins a section or a frame
            types.update(_stream_types(packet.tobytes()))
    if _SAMPLE_AES_VIDEO in types.values():
        return "HLS sample encryption (SAMPLE-AES)"
    video = [pid for pid, kind in types.items() if kind in _VIDEO_STREAM_TYPES]
    of_video = np.array(video) if video else np.arange(_NUM_PIDS)
    if num_scrambled[of_video].sum() > num_clear[of_video].sum():
        return "conditional access (scrambled MPEG-TS)"
    return None


def _ts_packets(window: bytes) -> NDArray[np.uint8]:
    """The packets [n, 188] at the stride and phase with the most sync bytes."""
    if len(window) < _TS_PACKET_BYTES:
        return np.empty((0, _TS_PACKET_BYTES), np.uint8)
    data = np.frombuffer(window, np.uint8)
    is_sync = data == 0x47
    best: tuple[int, int, int] = (-1, _TS_PACKET_BYTES, 0)
    for stride in (_TS_PACKET_BYTES, 192, 204):
        num_rows = min(40, len(data) // stride)
        if num_rows:
            counts = np.count_nonzero(is_sync[: num_rows * stride].reshape(num_rows, stride), axis=0)
            phase = int(counts.argmax())
            best = max(best, (int(counts[phase]), stride, phase))
    _, stride, phase = best
    packets = sliding_window_view(data, _TS_PACKET_BYTES)[phase::stride]
    found: NDArray[np.uint8] = packets[packets[:, 0] == 0x47]
    return found


def _stream_types(packet: bytes) -> dict[int, int]:
    """PID -> stream type, from the packet if it begins a program map table."""
    start = 5 + packet[4] if packet[3] & 0x20 else 4
    section = packet[start + 1 + packet[start] :] if start < len(packet) else b""
    if len(section) < 12 or section[0] != 2 or section[1] & 0xC0 != 0x80:
        return {}
    end = min(len(section), 3 + ((section[1] & 15) << 8 | section[2]) - 4)
    place = 12 + ((section[10] & 15) << 8 | section[11])
    types = {}
    while place + 5 <= end:
        types[(section[place + 1] & 0x1F) << 8 | section[place + 2]] = section[place]
        place += 5 + ((section[place + 3] & 15) << 8 | section[place + 4])
    return types


# --- MPEG program stream: the sectors of a DVD -----------------------------------------------------------------------


def _of_program_stream(file: BinaryIO) -> str | None:
    """Sectors are flagged; some copies keep the flag of sectors that they decrypted, whose start codes can be read."""
    num_video = num_garbled = 0
    for window in _windows(file, _PS_WINDOW_BYTES):
        for place in _video_packets(window):
            num_video += 1
            length = int.from_bytes(window[place + 4 : place + 6], "big")
            body = window[place + 128 : place + 6 + length]
            num_garbled += bool(window[place + 6] & 0x30 and len(body) > 256 and b"\0\0\x01" not in body)
    return "DVD (CSS)" if num_garbled * 20 > num_video else None


def _video_packets(window: bytes) -> list[int]:
    places, place = [], window.find(b"\0\0\x01\xe0")
    while 0 <= place < len(window) - 9:
        if window[place + 6] & 0xC0 == 0x80:  # MPEG-2
            places.append(place)
        place = window.find(b"\0\0\x01\xe0", place + 4)
    return places


# --- ASF, FLV --------------------------------------------------------------------------------------------------------

_ASF_ENCRYPTION = tuple(
    bytes.fromhex(text)
    for text in (
        "fbb3112223bdd211b4b700a0c955fc6e",  # content encryption
        "14e68a292226174cb935dae07ee9289c",  # extended content encryption
        "335805438169e6499b74ad12cb86d58c",  # advanced content encryption
    )
)


def _of_asf(file: BinaryIO) -> str | None:
    structure = Structure(file)
    found = any(
        item.kind in _ASF_ENCRYPTION for item in structure.asf_objects(structure.whole_file, skip=ASF_HEADER_BYTES)
    )
    return "Windows Media DRM" if found else None


def _of_flv(file: BinaryIO) -> str | None:
    tags = islice(Structure(file).flv_tags(), 200)
    return "Flash Access" if any(tag.kind[0] & 0x3F == 0x29 for tag in tags) else None  # 9 is video, 0x20 encrypted


_FINDERS: dict[str, Callable[[BinaryIO], str | None]] = {
    "mov": _of_mp4,
    "matroska": _of_matroska,
    "mpegts": _of_transport_stream,
    "mpeg": _of_program_stream,
    "asf": _of_asf,
    "flv": _of_flv,
}
