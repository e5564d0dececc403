"""What a decode process says is read or refused."""

from __future__ import annotations

import mmap
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vidlex.service.decode.replies import ReplyReader, decoder_name


def reader_of(**changes: Any) -> ReplyReader:
    options: dict[str, Any] = {"side": 2, "max_chunk_frames": 4, "num_slots": 2, "max_frames": 10, "num_frames": None}
    return ReplyReader(mmap.mmap(-1, 2 * 4 * 12), **(options | changes))


def reply_of(*times_ms: int, **changes: Any) -> dict[str, Any]:
    names = ("duration_ms", "width", "height", "fps", "num_frames", "num_bytes", "start_ms")
    video = {**dict.fromkeys(names, 1), "codec": "h264"}
    return {
        "timestamps_ms": list(times_ms),
        "video": video,
        "warnings": [],
        "num_failed": 0,
        "content": None,
        **changes,
    }


def test_totals_are_bounded() -> None:
    reader = reader_of()
    for _ in range(2):
        reader.chunk(reply_of(4, 4, 4, 4))
    with pytest.raises(ValueError, match="of at most 10"):
        reader.chunk(reply_of(5, 6, 7))
    reader.chunk(reply_of(5, 6))
    reader.finish({"end": True})


def test_a_fixed_number_of_frames_is_required() -> None:
    for num, is_right in ((3, False), (4, True)):
        reader = reader_of(num_frames=4)
        reader.chunk(reply_of(*range(num)))
        if is_right:
            reader.finish({"end": True})
        else:
            with pytest.raises(ValueError, match="instead of a multiple of 4"):
                reader.finish({"end": True})
    with pytest.raises(ValueError, match="0 frames"):
        reader_of().finish({"end": True})
    for other in ({"end": False}, {"stopped": True}, {}):
        with pytest.raises((ValueError, KeyError)):
            reader_of().finish(other)


def test_chunks_alternate_between_slots() -> None:
    memory = mmap.mmap(-1, 2 * 4 * 12)
    memory[:48], memory[48:] = b"a" * 48, b"b" * 48
    reader = ReplyReader(memory, side=2, max_chunk_frames=4, num_slots=2, max_frames=10, num_frames=None)
    found = [chr(int(reader.chunk(reply_of(n)).frames.max())) for n in range(4)]
    assert found == ["a", "b", "a", "b"]


def test_long_texts_are_cut() -> None:
    warnings = [["damaged_frames", "x" * 5000]]
    video = reply_of(0)["video"] | {"codec": "c" * 1000}
    batch = reader_of().chunk(reply_of(0, warnings=warnings, video=video))
    assert len(batch.warnings[0][1]) == 500 and len(batch.video.codec) == 32


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=5,
)


@given(field=st.sampled_from(sorted(reply_of(0))), value=json_values)
def test_any_field_of_any_value_is_read_or_refused(field: str, value: Any) -> None:
    try:
        batch = reader_of().chunk(reply_of(5, **{field: value}))
    except (ValueError, KeyError, TypeError, AttributeError, OverflowError):
        return
    assert len(batch.frames) == len(batch.timestamps_ms) <= 4
    assert all(0 <= t <= 2**53 for t in batch.timestamps_ms) and 0 <= batch.num_failed <= len(batch.frames)


@pytest.mark.parametrize("value", [None, 5, "", "a\nb", "x" * 121, "PyAV \x1b[31m"])
def test_the_name_of_a_decoder_is_checked(value: object) -> None:
    with pytest.raises(ValueError, match="not the name"):
        decoder_name(value)
