"""Names, keys, ids, vectors and records, without a store."""

from __future__ import annotations

import unicodedata
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vidlex.service.bounds import MAX_ALIASES, MAX_CATEGORIES, MAX_METADATA_BYTES, MAX_NAME_CHARS
from vidlex.service.errors import InvalidParameter, LabelTextInvalid, VidlexError
from vidlex.service.labels.store.names import display_name, fold, normalize_name
from vidlex.service.labels.store.records import (
    UNSET,
    LabelChanges,
    NewLabel,
    apply_changes,
    clean,
    label_from_json,
    label_to_json,
    make_label,
    normalized_names,
)
from vidlex.service.labels.store.redis_keys import Keys, is_label_id, make_label_id, parse_key, random_token
from vidlex.service.labels.store.vectors import VectorCorrupt, check_vector, decode_vector, encode_vector

any_text = st.text(max_size=200) | st.text(st.characters(), max_size=12)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("Dog", "dOG"),
        ("  golden   retriever ", "golden retriever"),
        ("Straße", "STRASSE"),
        ("caf\u00e9", "cafe\u0301"),
        ("\uff44\uff4f\uff47", "dog"),
        ("golden\u00a0retriever", "golden\u3000retriever"),
        ("ΣΊΣΥΦΟΣ", "σίσυφος"),
        ("\u2764", "\u2764\ufe0f"),
        ("a\u200db", "ab"),
        ("ﬁre", "FIRE"),
    ],
)
def test_equivalent_names_normalise_equally(one: str, other: str) -> None:
    assert normalize_name(one) == normalize_name(other)


def test_different_names_stay_different() -> None:
    names = ["dog", "dogs", "d og", "dög", "do", "犬", "🐕", "🐶", "C", "C++", "C#"]
    assert len({normalize_name(name) for name in names}) == len(names)


@pytest.mark.parametrize(
    "name",
    [
        "",
        "   ",
        "\u00a0\u3000",
        "a\x00b",
        "a\tb",
        "a\nb",
        "a\x7fb",
        "evil\u202egnp.exe",
        "a\u2066b\u2069",
        "a\u200bb",
        "a\ufeffb",
        "so\u00adft",
        "a\u2028b",
        "a\ud800b",
        "a\ue000b",
        "a\u0378b",
        "a\ufffe",
        "hidden\U000e0041\U000e0042",
        "a\U000e0100",
        "\u3164",
        "\u2800",
        "\u0301",
        "\u200d\u200d",
        "x" * (MAX_NAME_CHARS + 1),
        "\ufdfa" * 8,
        "x" * 100_000,
    ],
)
def test_invalid_names_are_rejected(name: str) -> None:
    with pytest.raises(LabelTextInvalid) as caught:
        normalize_name(name)
    assert caught.value.status == 422
    assert str(caught.value).isprintable()


@pytest.mark.parametrize("name", ["x", "x" * MAX_NAME_CHARS, "👩\u200d🔬", "می\u200cخواهم", "e\u0301" * 128, "!", "5"])
def test_valid_names_are_accepted(name: str) -> None:
    assert 1 <= len(display_name(name)) <= MAX_NAME_CHARS


def test_display_name_preserves_case_and_joiners() -> None:
    assert display_name("  Golden  Retriever ") == "Golden Retriever"
    assert display_name("👩\u200d🔬") == "👩\u200d🔬"


@given(any_text)
@settings(max_examples=500)
def test_display_name_properties(text: str) -> None:
    try:
        shown = display_name(text)
    except LabelTextInvalid:
        return
    assert display_name(shown) == shown
    assert shown == unicodedata.normalize("NFKC", shown) == shown.strip()
    assert "  " not in shown
    assert all(unicodedata.category(c) not in {"Cc", "Cs", "Co", "Cn", "Zl", "Zp"} for c in shown)
    assert normalize_name(text) == normalize_name(shown) == fold(shown)
    shown.encode()


@given(any_text)
@settings(max_examples=500)
def test_fold_is_idempotent_and_ignores_case(text: str) -> None:
    assert fold(fold(text)) == fold(text)
    assert fold(text.casefold()) == fold(text)


namespaces = st.from_regex(r"[a-z0-9][a-z0-9_-]{0,63}", fullmatch=True)
fingerprints = st.from_regex(r"[!-~]{1,200}", fullmatch=True)


@given(namespaces, fingerprints, any_text.filter(bool))
def test_keys_parse_back(namespace: str, fingerprint: str, category: str) -> None:
    keys = Keys(namespace)
    plain = {kind: getattr(keys, kind) for kind in ("changes", "names", "records", "order", "generations")}
    for kind, key in plain.items():
        parsed = parse_key(key)
        assert parsed is not None
        assert (parsed.namespace, parsed.kind, parsed.argument) == (namespace, kind, None)
    for kind, key, argument in [
        ("vectors", keys.vectors(fingerprint), fingerprint),
        ("category", keys.category(category), category),
    ]:
        parsed = parse_key(key)
        assert parsed is not None
        assert (parsed.namespace, parsed.kind, parsed.argument) == (namespace, kind, argument)
        # A cluster hashes the text in the first braces, which must be the namespace for any argument.
        assert key[key.index("{") + 1 : key.index("}")] == namespace
    assert len({*plain.values(), keys.vectors("a"), keys.category("a")}) == len(plain) + 2


@pytest.mark.parametrize(
    "key", ["", "vidlex", "vidlex:default:names", "vidlex:{}:names", "vidlex:{A}:names", "x:{a}:names", "vidlex:{a}:no",
            "vidlex:{a}:vectors", "vidlex:{a}:names:x", b"\xff\xfe"]
)  # fmt: skip
def test_unknown_keys_are_not_parsed(key: str | bytes) -> None:
    assert parse_key(key) is None


@pytest.mark.parametrize("namespace", ["", "A", "a b", "a{b", "-a", "a" * 65, "ü", "a\n"])
def test_invalid_names_are_rejectedpaces(namespace: str) -> None:
    with pytest.raises(ValueError, match="namespace"):
        Keys(namespace)


@pytest.mark.parametrize("fingerprint", ["", "a b", "a\n", "ü", "x" * 201])
def test_invalid_fingerprints_are_rejected(fingerprint: str) -> None:
    with pytest.raises(ValueError, match="fingerprint"):
        Keys("a").vectors(fingerprint)


@given(*[st.tuples(st.integers(0, 32**8 - 1), st.integers(0, 32**4 - 1))] * 2)
def test_ids_sort_by_creation(one: tuple[int, int], other: tuple[int, int]) -> None:
    first, second = (make_label_id(*position, random_token()) for position in (one, other))
    assert is_label_id(first)
    if one != other:
        assert (first < second) == (one < other)


@pytest.mark.parametrize("text", ["", "lbl_", "lbl_" + "u" * 24, "lbl_" + "0" * 23, "LBL_" + "0" * 24, "x" * 28])
def test_other_texts_are_not_label_ids(text: str) -> None:
    assert not is_label_id(text)


@given(st.lists(st.floats(width=32, allow_nan=False, allow_infinity=False), min_size=1, max_size=40), st.data())
def test_vector_round_trip_and_detection_of_every_flipped_bit(numbers: list[float], data: st.DataObject) -> None:
    vector = np.array(numbers, dtype=np.float32)
    raw = encode_vector(vector)
    assert len(raw) == 4 * len(numbers) + 4
    assert decode_vector(raw, len(numbers)).tobytes() == vector.tobytes()
    bit = data.draw(st.integers(0, 8 * len(raw) - 1))
    damaged = bytearray(raw)
    damaged[bit // 8] ^= 1 << bit % 8
    with pytest.raises(VectorCorrupt, match="checksum"):
        decode_vector(bytes(damaged), len(numbers))
    with pytest.raises(VectorCorrupt, match="bytes stored"):
        decode_vector(raw[:-1], len(numbers))


def test_vector_bytes_are_little_endian() -> None:
    assert encode_vector(np.array([1.0], np.float32))[:4] == b"\x00\x00\x80\x3f"


@pytest.mark.parametrize("vector", [[], [[1.0]], [np.nan], [np.inf], 1.0])
def test_invalid_vectors_are_rejected(vector: Any) -> None:
    with pytest.raises(ValueError, match="vector"):
        check_vector(vector)


def test_clean_removes_duplicates_and_normalises_categories() -> None:
    cleaned = clean(
        NewLabel(" Dog ", ("DOG", "Hound", "hound", "puppy"), ("Animal", "animal ", "Pet"), (), 1, {"a": (1,)})
    )
    assert cleaned == NewLabel("Dog", ("Hound", "puppy"), ("animal", "pet"), (), 1.0, {"a": [1]})
    assert normalized_names(cleaned) == ["dog", "hound", "puppy"]


nested: Any = []
for _ in range(100_000):
    nested = [nested]


@pytest.mark.parametrize(
    "new",
    [
        NewLabel("a", aliases=("",)),
        NewLabel("a", categories=("a\u202eb",)),
        NewLabel("a", aliases=tuple(f"alias {i}" for i in range(MAX_ALIASES + 1))),
        NewLabel("a", categories=tuple(f"category {i}" for i in range(MAX_CATEGORIES + 1))),
        NewLabel("a", threshold=1.5),
        NewLabel("a", threshold=float("nan")),
        NewLabel("a", threshold=True),
        NewLabel("a", threshold="0.5"),  # type: ignore[arg-type]
        NewLabel("a", metadata={"x": float("inf")}),
        NewLabel("a", metadata={"x": object()}),
        NewLabel("a", metadata={"x": "\ud800"}),
        NewLabel("a", metadata={"x": "y" * MAX_METADATA_BYTES}),
        NewLabel("a", metadata={"x": nested}),
        NewLabel("a", metadata=[1]),  # type: ignore[arg-type]
    ],
)
def test_invalid_labels_are_rejected(new: NewLabel) -> None:
    with pytest.raises((InvalidParameter, LabelTextInvalid)) as caught:
        clean(new)
    assert isinstance(caught.value, VidlexError)


json_values: st.SearchStrategy[Any] = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=10,
)


@given(st.dictionaries(st.text(max_size=10), json_values, max_size=4), st.none() | st.floats(0, 1))
def test_record_round_trip(metadata: dict[str, Any], threshold: float | None) -> None:
    try:
        cleaned = clean(NewLabel("Dog", ("Hound",), ("animal",), (), threshold, metadata))
    except InvalidParameter:
        return  # text that UTF-8 cannot carry
    assert clean(cleaned) == cleaned
    label = make_label("lbl_" + "0" * 24, cleaned, created_at_ms=1, updated_at_ms=2, revision=3)
    assert label_from_json(label.id, label_to_json(label)) == label


def test_changes_replace_only_the_given_fields() -> None:
    label = make_label(
        "lbl_" + "0" * 24,
        NewLabel("Dog", ("Hound",), ("animal",), (), 0.5, {"a": 1}),
        created_at_ms=1,
        updated_at_ms=1,
        revision=1,
    )
    assert apply_changes(label, LabelChanges()) == NewLabel("Dog", ("Hound",), ("animal",), (), 0.5, {"a": 1})
    assert apply_changes(label, LabelChanges(threshold=None)).threshold is None
    assert apply_changes(label, LabelChanges(threshold=UNSET)).threshold == 0.5
    assert apply_changes(label, LabelChanges(aliases=())).aliases == ()
    assert apply_changes(label, LabelChanges(name="Cat")).name == "Cat"
