"""API keys without HTTP: their form, the file, the store, the gate's memory and the token buckets."""

from __future__ import annotations

import ast
import inspect
from pathlib import Path

import pytest
import redis
from hypothesis import given
from hypothesis import strategies as st

from support.processes import until
from vidlex.service.access import api_keys as keys_module
from vidlex.service.access import gate as gate_module
from vidlex.service.access.api_keys import SCOPES, KeyRecord, digest_of, key_id_of, matches, new_key, record_from_json
from vidlex.service.access.gate import Gate, GateOptions, make_record, principal_of
from vidlex.service.access.key_file import KeyFileError, read_key_file
from vidlex.service.access.key_store import KeyStore
from vidlex.service.access.token_buckets import Buckets
from vidlex.service.errors import ModelLoading, NoApiKeys, NotFound, RateLimited, StoreUnavailable, Unauthorized

PUBLIC = GateOptions(loopback=False)


def test_a_key_has_256_random_bits_and_its_hash_matches_it_alone() -> None:
    made = {new_key()[1] for _ in range(100)}
    assert len(made) == 100
    key_id, text = new_key()
    assert key_id_of(text) == key_id and len(bytes.fromhex(text.rpartition("_")[2])) == 32
    assert matches(text, digest_of(text))
    assert not any(matches(other, digest_of(text)) for other in (text[:-1], text + "0", text.upper(), "", text + "\n"))


@given(st.text(max_size=120))
def test_no_text_breaks_the_parser(text: str) -> None:
    assert key_id_of(text) is None or text.startswith("vdx_")


@given(st.builds(KeyRecord, st.from_regex(r"[0-9a-f]{12}", fullmatch=True), st.just("0" * 64), st.sampled_from(SCOPES)))
def test_records_survive_json(record: KeyRecord) -> None:
    assert record_from_json(record.to_json()) == record


@pytest.mark.parametrize("text", ["", "[]", "null", '{"id":"x"}', '{"id":"0123456789ab","digest":"","scope":"read"}'])
def test_a_foreign_record_is_refused(text: str) -> None:
    with pytest.raises(ValueError):
        record_from_json(text)


def test_secrets_are_compared_by_hmac_alone() -> None:
    """No ``==`` on a secret or digest, and the comparison also runs for ids that nobody has."""
    calls = [
        ast.unparse(n.func) for n in ast.walk(ast.parse(inspect.getsource(keys_module))) if isinstance(n, ast.Call)
    ]
    assert calls.count("hmac.compare_digest") == 1
    for node in ast.walk(ast.parse(inspect.getsource(gate_module) + inspect.getsource(keys_module))):
        if isinstance(node, ast.Compare) and any(isinstance(op, ast.Eq | ast.NotEq) for op in node.ops):
            assert "digest" not in ast.unparse(node).replace("len(record.digest)", "")


def test_the_comparison_runs_for_unknown_ids_too(monkeypatch: pytest.MonkeyPatch) -> None:
    compared: list[str] = []
    monkeypatch.setattr(gate_module, "matches", lambda text, digest: compared.append(digest) or matches(text, digest))
    with pytest.raises(Unauthorized):
        Gate(PUBLIC).authenticate(new_key()[1], "a")
    assert len(compared) == 1 and len(compared[0]) == 64


def test_the_file_takes_plain_and_hashed_keys(tmp_path: Path) -> None:
    (first, plain), (second, other) = new_key(), new_key()
    file = tmp_path / "keys"
    file.write_text(
        f"# ours\n\n{plain} scope=admin\nvdx_{second}_sha256:{digest_of(other)} scope=read namespace=zoo name=camera\n"
    )
    found = read_key_file(file)
    assert (found[first].scope, found[first].namespace) == ("admin", None)
    assert (found[second].namespace, found[second].name) == ("zoo", "camera")
    gate = Gate(GateOptions(loopback=False, key_file=file))
    assert gate.authenticate(plain, "a").id == first and gate.authenticate(other, "a").id == second
    with pytest.raises(Unauthorized):
        gate.authenticate(f"vdx_{second}_sha256:{digest_of(other)}", "a")


@pytest.mark.parametrize(
    "line", ["", "sesame scope=admin", "{key}", "{key} scope=god", "{key} admin", "{key} scope=read namespace=A/B",
             "{key} scope=read scope=admin", "{key} scope=read\n{key} scope=admin"]
)  # fmt: skip
def test_a_wrong_file_is_told_without_its_secret(tmp_path: Path, line: str) -> None:
    key = new_key()[1]
    (tmp_path / "keys").write_text(line.replace("{key}", key))
    with pytest.raises(KeyFileError) as caught:
        Gate(GateOptions(key_file=tmp_path / "keys"))
    assert key not in str(caught.value) and "sesame" not in str(caught.value)


def test_only_hashes_are_in_the_store(client: redis.Redis) -> None:
    record, text = make_record(scope="write", namespace="zoo", name="x")
    store = KeyStore(client)
    with pytest.raises(NotFound):
        store.revoke(record.id)
    assert store.revision() == 0, "no key was ever made"
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


def test_the_gate_follows_the_store_and_outlives_it(client: redis.Redis) -> None:
    class Away(KeyStore):
        away = False

        def revision(self) -> int:
            if self.away:
                raise StoreUnavailable
            return super().revision()

    kept, kept_text = make_record(scope="admin", namespace=None)
    writer, store = KeyStore(client), Away(client)
    writer.add(kept)
    now = [1000.0]
    gate = Gate(PUBLIC, clock=lambda: now[0])
    gate.attach(store)
    try:
        made, text = make_record(scope="read", namespace="zoo", expires_at_ms=2_000_000)
        writer.add(made)
        until(lambda: made.id in gate._stored, seconds=2)
        assert principal_of(gate.authenticate(text, "a")).namespace == "zoo"
        writer.revoke(kept.id)
        until(lambda: kept.id not in gate._stored, seconds=2)
        with pytest.raises(Unauthorized):
            gate.authenticate(kept_text, "a")
        store.away = True
        assert gate.authenticate(text, "a") == made
        now[0] = 2000.0
        with pytest.raises(Unauthorized):
            gate.authenticate(text, "a")
    finally:
        gate.close()


def test_when_the_door_is_open(client: redis.Redis) -> None:
    store = KeyStore(client)
    assert Gate(GateOptions(insecure=True, loopback=False)).is_open
    assert not Gate(PUBLIC).is_open, "before anything is known"
    with pytest.raises(NoApiKeys, match="vidlex keys create"):
        Gate(PUBLIC).attach(store)
    local = Gate(GateOptions())
    with pytest.raises(ModelLoading):
        local.is_open  # noqa: B018
    local.attach(store)
    assert local.is_open
    record, _ = make_record(scope="admin", namespace=None)
    store.add(record)
    local.refresh()
    assert not local.is_open
    store.revoke(record.id)
    local.refresh()
    assert not local.is_open, "revoking the last key must not open the door again"
    local.close()


def test_wrong_keys_are_bounded_and_right_ones_are_not(client: redis.Redis) -> None:
    record, text = make_record(scope="read", namespace=None)
    KeyStore(client).add(record)
    gate = Gate(PUBLIC)
    gate.attach(KeyStore(client))
    try:
        answers = []
        for _ in range(40):
            with pytest.raises((Unauthorized, RateLimited)) as caught:
                gate.authenticate(f"vdx_{record.id}_{'0' * 64}", "1.2.3.4")
            answers.append(caught.type)
        assert answers[:20] == [Unauthorized] * 20 and answers[-1] is RateLimited
        assert gate.authenticate(text, "1.2.3.4").id == record.id
        with pytest.raises(Unauthorized):
            gate.authenticate("nonsense", "5.6.7.8")
    finally:
        gate.close()


def test_a_bucket_fills_at_its_rate_and_tells_when_to_come_back() -> None:
    now = [0.0]
    buckets = Buckets(clock=lambda: now[0])
    grants = [buckets.take("k", 2.0, 3) for _ in range(4)]
    assert [g.allowed for g in grants] == [True, True, True, False]
    assert [g.remaining for g in grants] == [2, 1, 0, 0] and grants[-1].retry_after_seconds == 1
    assert grants[0].headers() == {"RateLimit-Policy": '"key";q=3;w=2', "RateLimit": '"key";r=2;t=1'}
    assert buckets.take("other", 2.0, 3).allowed
    now[0] = 0.5
    assert buckets.take("k", 2.0, 3).allowed and not buckets.take("k", 2.0, 3).allowed


@given(st.lists(st.floats(0, 5), max_size=60), st.floats(0.1, 50), st.integers(1, 20))
def test_never_more_than_rate_and_burst_allow(pauses: list[float], per_second: float, burst: int) -> None:
    now, passed = [0.0], 0
    buckets = Buckets(clock=lambda: now[0])
    for pause in pauses:
        now[0] += pause
        passed += buckets.take("k", per_second, burst).allowed
    assert passed <= burst + now[0] * per_second + 1e-6
