"""API keys without HTTP: text form, key file, store, access control and token buckets."""

from __future__ import annotations

import ast
import inspect
from pathlib import Path

import pytest
import redis
from hypothesis import given
from hypothesis import strategies as st

from support.processes import until
from vidlex.service.access import access_control, api_keys
from vidlex.service.access.access_control import AccessControl, AccessOptions, create_key_record
from vidlex.service.access.api_keys import SCOPES, KeyRecord, digest_of, key_id_of, matches, new_key, record_from_json
from vidlex.service.access.key_file import KeyFileError, read_key_file
from vidlex.service.access.key_store import KeyStore
from vidlex.service.access.token_buckets import TokenBuckets
from vidlex.service.errors import ModelLoading, NoApiKeys, NotFound, RateLimited, StoreUnavailable, Unauthorized

PUBLIC = AccessOptions(loopback=False)


def test_key_has_256_random_bits_and_matches_only_its_digest() -> None:
    made = {new_key()[1] for _ in range(100)}
    assert len(made) == 100
    key_id, text = new_key()
    assert key_id_of(text) == key_id and len(bytes.fromhex(text.rpartition("_")[2])) == 32
    assert matches(text, digest_of(text))
    assert not any(matches(other, digest_of(text)) for other in (text[:-1], text + "0", text.upper(), "", text + "\n"))


@given(st.text(max_size=120))
def test_key_id_of_accepts_any_text(text: str) -> None:
    assert key_id_of(text) is None or text.startswith("vdx_")


@given(st.builds(KeyRecord, st.from_regex(r"[0-9a-f]{12}", fullmatch=True), st.just("0" * 64), st.sampled_from(SCOPES)))
def test_key_record_json_round_trip(record: KeyRecord) -> None:
    assert record_from_json(record.to_json()) == record


@pytest.mark.parametrize("text", ["", "[]", "null", '{"id":"x"}', '{"id":"0123456789ab","digest":"","scope":"read"}'])
def test_record_from_json_refuses_invalid_records(text: str) -> None:
    with pytest.raises(ValueError):
        record_from_json(text)


def test_digests_are_compared_only_with_compare_digest() -> None:
    """No ``==`` on a secret or digest."""
    calls = [ast.unparse(n.func) for n in ast.walk(ast.parse(inspect.getsource(api_keys))) if isinstance(n, ast.Call)]
    assert calls.count("hmac.compare_digest") == 1
    for node in ast.walk(ast.parse(inspect.getsource(access_control) + inspect.getsource(api_keys))):
        if isinstance(node, ast.Compare) and any(isinstance(op, ast.Eq | ast.NotEq) for op in node.ops):
            assert "digest" not in ast.unparse(node).replace("len(record.digest)", "")


def test_authenticate_compares_digests_for_unknown_ids(monkeypatch: pytest.MonkeyPatch) -> None:
    compared: list[str] = []
    monkeypatch.setattr(
        access_control, "matches", lambda text, digest: compared.append(digest) or matches(text, digest)
    )
    with pytest.raises(Unauthorized):
        AccessControl(PUBLIC).authenticate(new_key()[1], "a")
    assert len(compared) == 1 and len(compared[0]) == 64


def test_key_file_accepts_plain_and_hashed_keys(tmp_path: Path) -> None:
    (first, plain), (second, hashed) = new_key(), new_key()
    file = tmp_path / "keys"
    file.write_text(
        f"# keys\n\n{plain} scope=admin\nvdx_{second}_sha256:{digest_of(hashed)} scope=read namespace=zoo name=camera\n"
    )
    found = read_key_file(file)
    assert (found[first].scope, found[first].namespace) == ("admin", None)
    assert (found[second].namespace, found[second].name) == ("zoo", "camera")
    access = AccessControl(AccessOptions(loopback=False, key_file=file))
    assert access.authenticate(plain, "a").id == first and access.authenticate(hashed, "a").id == second
    with pytest.raises(Unauthorized):
        access.authenticate(f"vdx_{second}_sha256:{digest_of(hashed)}", "a")


@pytest.mark.parametrize(
    "line", ["", "sesame scope=admin", "{key}", "{key} scope=god", "{key} admin", "{key} scope=read namespace=A/B",
             "{key} scope=read scope=admin", "{key} scope=read\n{key} scope=admin"]
)  # fmt: skip
def test_key_file_error_does_not_contain_the_secret(tmp_path: Path, line: str) -> None:
    key = new_key()[1]
    (tmp_path / "keys").write_text(line.replace("{key}", key))
    with pytest.raises(KeyFileError) as caught:
        AccessControl(AccessOptions(key_file=tmp_path / "keys"))
    assert key not in str(caught.value) and "sesame" not in str(caught.value)


def test_store_contains_only_digests(client: redis.Redis) -> None:
    record, text = create_key_record(scope="write", namespace="zoo", name="x")
    store = KeyStore(client)
    with pytest.raises(NotFound):
        store.revoke(record.id)
    assert store.revision() == 0, "no key was ever created"
    store.add(record)
    dump = b"".join(bytes(client.dump(key)) for key in client.keys("*"))
    assert record.digest.encode() in dump
    assert text.encode() not in dump and text.rpartition("_")[2].encode() not in dump
    assert store.list() == [(record, None)] and store.revision() == 1
    store.note_used({record.id: 120_000, "0" * 12: 1})
    assert store.list() == [(record, 120_000)]
    store.revoke(record.id)
    with pytest.raises(NotFound):
        store.revoke(record.id)
    assert store.revision() == 2
    assert store.list() == [] and not client.exists("vidlex-access:{access}:used")


def test_access_control_follows_the_store_and_survives_its_outage(client: redis.Redis) -> None:
    class FailingStore(KeyStore):
        fails = False

        def revision(self) -> int:
            if self.fails:
                raise StoreUnavailable
            return super().revision()

    first, first_text = create_key_record(scope="admin", namespace=None)
    writer, store = KeyStore(client), FailingStore(client)
    writer.add(first)
    now = [1000.0]
    access = AccessControl(PUBLIC, clock=lambda: now[0])
    access.attach(store)
    try:
        made, text = create_key_record(scope="read", namespace="zoo", expires_at_ms=2_000_000)
        writer.add(made)
        until(lambda: made.id in access._stored_keys, seconds=2)
        assert access.authenticate(text, "a").principal.namespace == "zoo"
        writer.revoke(first.id)
        until(lambda: first.id not in access._stored_keys, seconds=2)
        with pytest.raises(Unauthorized):
            access.authenticate(first_text, "a")
        store.fails = True
        assert access.authenticate(text, "a") == made
        now[0] = 2000.0
        with pytest.raises(Unauthorized):
            access.authenticate(text, "a")
    finally:
        access.close()


def test_is_open(client: redis.Redis) -> None:
    store = KeyStore(client)
    assert AccessControl(AccessOptions(insecure=True, loopback=False)).is_open
    assert not AccessControl(PUBLIC).is_open, "before the keys are loaded"
    with pytest.raises(NoApiKeys, match="vidlex keys create"):
        AccessControl(PUBLIC).attach(store)
    local = AccessControl(AccessOptions())
    with pytest.raises(ModelLoading):
        local.is_open  # noqa: B018
    local.attach(store)
    assert local.is_open
    record, _ = create_key_record(scope="admin", namespace=None)
    store.add(record)
    local.refresh()
    assert not local.is_open
    store.revoke(record.id)
    local.refresh()
    assert not local.is_open, "revoking the last key must not disable access control"
    local.close()


def test_failures_are_rate_limited_and_valid_keys_are_not(client: redis.Redis) -> None:
    record, text = create_key_record(scope="read", namespace=None)
    KeyStore(client).add(record)
    access = AccessControl(PUBLIC)
    access.attach(KeyStore(client))
    try:
        errors = []
        for _ in range(40):
            with pytest.raises((Unauthorized, RateLimited)) as caught:
                access.authenticate(f"vdx_{record.id}_{'0' * 64}", "1.2.3.4")
            errors.append(caught.type)
        assert errors[:20] == [Unauthorized] * 20 and errors[-1] is RateLimited
        assert access.authenticate(text, "1.2.3.4").id == record.id
        with pytest.raises(Unauthorized):
            access.authenticate("nonsense", "5.6.7.8")
    finally:
        access.close()


def test_bucket_refills_at_its_rate_and_reports_retry_after() -> None:
    now = [0.0]
    buckets = TokenBuckets(clock=lambda: now[0])
    decisions = [buckets.take("k", 2.0, 3) for _ in range(4)]
    assert [g.is_allowed for g in decisions] == [True, True, True, False]
    assert [g.remaining for g in decisions] == [2, 1, 0, 0] and decisions[-1].retry_after_seconds == 1
    assert decisions[0].headers() == {"RateLimit-Policy": '"key";q=3;w=2', "RateLimit": '"key";r=2;t=1'}
    assert buckets.take("other", 2.0, 3).is_allowed
    now[0] = 0.5
    assert buckets.take("k", 2.0, 3).is_allowed and not buckets.take("k", 2.0, 3).is_allowed


@given(st.lists(st.floats(0, 5), max_size=60), st.floats(0.1, 50), st.integers(1, 20))
def test_bucket_never_exceeds_rate_and_burst(pauses: list[float], per_second: float, burst: int) -> None:
    now, passed = [0.0], 0
    buckets = TokenBuckets(clock=lambda: now[0])
    for pause in pauses:
        now[0] += pause
        passed += buckets.take("k", per_second, burst).is_allowed
    assert passed <= burst + now[0] * per_second + 1e-6
