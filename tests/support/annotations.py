"""Small annotation files in the published formats of the five datasets. Ids and numbers are made up."""

from __future__ import annotations

import json
import struct
from collections.abc import Sequence

from vidlex.model.data.tfrecord import masked_crc


def vocabulary_csv() -> str:
    """3,862 rows ordered by frequency, not by Index, with unusual names, as in the real file."""
    special = {
        0: ("Game", "Games", ""),
        4: ("Racing car", "Autos & Vehicles", "Games"),
        120: ("", "Food & Drink", ""),
        271: ('"Nike, Inc."', "Shopping", "Sports"),
        2533: ('"Toys ""R"" Us"', "Shopping", ""),
        3084: (" Nova", "(Unknown)", ""),
    }
    lines = ["Index,TrainVideoCount,KnowledgeGraphId,Name,WikiUrl,Vertical1,Vertical2,Vertical3,WikiDescription"]
    order = [*range(30), *range(31, 3862), 30]
    for rank, index in enumerate(order):
        name, first, second = special.get(index, (f"Thing {index}", "Science", ""))
        lines.append(f'{index},{900_000 - 200 * rank},/m/{index},{name},,{first},{second},,"A, b"')
    return "\n".join(lines) + "\n"


def kinetics_csv() -> str:
    return (
        "label,youtube_id,time_start,time_end,split,is_cc\n"
        "abseiling,0wR5jVB-WPk,417,427,val,0\n"
        '"air drumming",--nQbRBEz2s,104,114,val,0\n'
        '"massaging person\'s head",_aaaaaaaaa-,0,10,train,1\n'
        '"air drumming",Zbbbbbbbbbb,7.0,17.0,validate,0\n'
    )


def rareact_csv() -> str:
    """Class 0 cut laptop, 1 cut phone, 2 wash laptop, 3 drop shoes (without a positive)."""
    rows = [
        ("A", 0, 0, "cut", "laptop", 1),
        ("A", 10, 0, "cut", "laptop", 2),
        ("B", 0, 0, "cut", "laptop", 0),
        ("B", 0, 1, "cut", "phone", 1),
        ("C", 0, 2, "wash", "laptop", 1),
        ("C", 0, 1, "cut", "phone", 0),
        ("C", 0, 1, "cut", "phone", 3),
        ("D", 20, 0, "cut", "laptop", 4),
        ("D", 30, 3, "drop", "shoes", 0),
        ("A", 20, 0, "cut", "laptop", 1),
    ]
    lines = ["id,video_id,start,end,class_id,verb,noun,annotation"]
    lines += [
        f"{i},-{letter * 10},{start},{start + 10},{c},{verb},{noun},{code}"
        for i, (letter, start, c, verb, noun, code) in enumerate(rows)
    ]
    return "\n".join(lines) + "\n"


def tao_json() -> str:
    """Three videos; mug 720 is merged into cup 347; 805 is named baby and means person."""
    return json.dumps(
        {
            "info": {"version": "1"},
            "licenses": ["Unknown"],
            "videos": [
                {"id": 1, "name": "val/HACS/a", "neg_category_ids": [57, 720], "not_exhaustive_category_ids": [805]},
                {"id": 2, "name": "val/LaSOT/b", "neg_category_ids": [805, 347], "not_exhaustive_category_ids": []},
                {"id": 3, "name": "val/LaSOT/c", "neg_category_ids": [57], "not_exhaustive_category_ids": [57]},
            ],
            "tracks": [
                {"id": 31, "category_id": 805, "video_id": 1},
                {"id": 32, "category_id": 720, "video_id": 2},
                {"id": 33, "category_id": 139, "video_id": 2},
                {"id": 34, "category_id": 805, "video_id": 3},
            ],
            "categories": [
                {"id": 805, "name": "baby", "synset": "person.n.01", "frequency": "f"},
                {"id": 57, "name": "bat_(animal)", "synset": "bat.n.01"},
                {"id": 139, "name": "bow_(weapon)", "synset": "bow.n.04"},
                {"id": 347, "name": "cup", "synset": "cup.n.01", "merged": [{"id": 720, "name": "mug"}]},
                {"id": 720, "name": "mug", "synset": "mug.n.04"},
            ],
        },
        indent=1,
    )


def activitynet_json() -> str:
    """A video with two activities, an end after the duration, an empty segment, and an unlabelled video."""

    def video(duration: float, subset: str, *annotations: tuple[str, float, float]) -> dict[str, object]:
        segments = [{"label": label, "segment": [start, end]} for label, start, end in annotations]
        return {"duration": duration, "subset": subset, "resolution": "320x240", "annotations": segments}

    return json.dumps(
        {
            "version": "VERSION 1.3",
            "taxonomy": [{"nodeId": 0, "nodeName": "Root", "parentId": None}],
            "database": {
                "aaaaaaaaaaa": video(82.7, "training", ("Mooping floor", 6.195, 83.1), ("BMX", 1, 2.5)),
                "-bbbbbbbbbb": video(10.0, "validation", ("Ping-pong", 0, 0), ("BMX", 3, 4), ("BMX", 5, 6)),
                "ccccccccccc": video(10.0, "testing"),
            },
        },
        indent=1,
    )


# --- TFRecords ---------------------------------------------------------------------------------------------------


def record(features: dict[str, Sequence[bytes] | Sequence[int] | Sequence[float]], *, packed: bool = True) -> bytes:
    """One framed ``tf.train.Example``, with packed or unpacked numbers."""
    entries = b"".join(
        _field(1, _field(1, name.encode()) + _field(2, _feature(v, packed))) for name, v in features.items()
    )
    payload = _field(1, entries)
    length = struct.pack("<Q", len(payload))
    return length + struct.pack("<I", masked_crc(length)) + payload + struct.pack("<I", masked_crc(payload))


def _feature(values: Sequence[bytes] | Sequence[int] | Sequence[float], packed: bool) -> bytes:
    if all(isinstance(v, bytes) for v in values):
        return _field(1, b"".join(_field(1, v) for v in values if isinstance(v, bytes)))
    if all(isinstance(v, int) for v in values):
        numbers = [_varint(int(v) % (1 << 64)) for v in values if isinstance(v, int)]
        unpacked = b"".join(b"\x08" + n for n in numbers)
        return _field(3, _field(1, b"".join(numbers)) if packed else unpacked)
    floats = [struct.pack("<f", v) for v in values if isinstance(v, float)]
    return _field(2, _field(1, b"".join(floats)) if packed else b"".join(b"\x0d" + f for f in floats))


def _field(number: int, data: bytes) -> bytes:
    return _varint(number << 3 | 2) + _varint(len(data)) + data


def _varint(number: int) -> bytes:
    out = b""
    while number >= 0x80:
        out += bytes([number & 0x7F | 0x80])
        number >>= 7
    return out + bytes([number])
