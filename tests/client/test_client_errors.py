"""Exceptions by code: every code of the service has a class."""

from __future__ import annotations

import pickle
from collections.abc import Iterator

import pytest

from support.client_kinds import KINDS, opened
from support.scripted_http import Answer, ScriptedServer, problem, scripted
from vidlex.service import errors as service_errors
from vidlex.service.client import errors
from vidlex.service.client.config import NO_WAIT
from vidlex.service.client.errors import CLASS_OF_CODE, VidlexClientError, error_of


def codes(kind: type[service_errors.VidlexError]) -> dict[str, int]:
    found = {kind.code: kind.status}
    for more in kind.__subclasses__():
        found |= codes(more)
    return found


def test_every_code_of_the_service_has_a_class() -> None:
    assert set(CLASS_OF_CODE) == set(codes(service_errors.VidlexError))
    assert VidlexClientError not in CLASS_OF_CODE.values()


def test_a_code_is_of_the_class_of_its_status() -> None:
    """So that code that this client does not know, with the same status, is caught by the same handlers."""
    for code, status in codes(service_errors.VidlexError).items():
        by_code, by_status = error_of({"code": code}, status), error_of({"code": "new_code"}, status)
        assert by_code.code == code and by_code.status == status
        assert by_status.code == "new_code"
        if status in (401, 403, 404, 409, 412, 413, 429, 503):
            assert isinstance(by_code, type(by_status)), code


@pytest.fixture
def server() -> Iterator[ScriptedServer]:
    with scripted() as found:
        yield found


@pytest.mark.parametrize("kind", KINDS)
def test_the_problem_is_kept(server: ScriptedServer, kind: str) -> None:
    items = [{"pointer": "/name", "detail": "is missing"}]
    server.answers = [
        problem(409, "label_exists", existing_id="lbl_1", request_id="r1", errors=items, newer_member={"a": 1})
    ]
    with opened(kind, server.url) as client, pytest.raises(errors.LabelExists) as caught:
        client.create_label("red")
    error = caught.value
    assert isinstance(error, errors.Conflict)
    assert (error.existing_id, error.request_id, error.errors) == ("lbl_1", "r1", items)
    assert str(error) == "detail of label_exists (label_exists)" and error.detail == "detail of label_exists"
    assert error.problem is not None and error.problem["newer_member"] == {"a": 1}


@pytest.mark.parametrize(
    ("answer", "kind", "code"),
    [
        (Answer(418, b"<html>teapot"), errors.RequestInvalid, "http_418"),
        (Answer(500, b""), errors.ServiceFailed, "http_500"),
        (Answer(502, b"<html>Bad gateway"), errors.Unavailable, "http_502"),
        (Answer(404, b"[" * 100_000), errors.NotFound, "http_404"),
        (Answer(400, {"detail": ["of another kind"], "code": 7}), errors.RequestInvalid, "http_400"),
        (problem(400, "of_tomorrow"), errors.RequestInvalid, "of_tomorrow"),
        (Answer(200, b"<html>A captive portal"), errors.UnexpectedAnswer, "unexpected_answer"),
        (Answer(200, {"object": "label"}), errors.UnexpectedAnswer, "unexpected_answer"),
        (Answer(200, b""), errors.UnexpectedAnswer, "unexpected_answer"),
        (Answer(200, b"x", {"Content-Encoding": "gzip"}), errors.UnexpectedAnswer, "unexpected_answer"),
        (Answer(308, b"", {"Location": "https://a.example/"}), errors.UnexpectedAnswer, "unexpected_answer"),
    ],
)
def test_answers_of_others_than_the_service(
    server: ScriptedServer, answer: Answer, kind: type[VidlexClientError], code: str
) -> None:
    server.answers = [answer]
    with opened("sync", server.url, retries=NO_WAIT) as client, pytest.raises(kind) as caught:
        client.get_label("lbl_1")
    assert caught.value.code == code and caught.value.detail
    if answer.status == 308:
        assert "https://a.example/" in caught.value.detail


def test_errors_can_be_pickled() -> None:
    """They cross processes in a pool of workers."""
    error = error_of({"code": "rate_limited", "detail": "slower", "retry_after_ms": 3000}, 429)
    copy = pickle.loads(pickle.dumps(error))
    assert type(copy) is errors.Busy and str(copy) == str(error)
    assert (copy.status, copy.retry_after_seconds) == (429, 3.0)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"url": "ftp://x"}, "http://"),
        ({"url": "127.0.0.1:8000"}, "http://"),
        ({"url": "http://[::1"}, "no address"),
        ({"url": "http://a:99999"}, "no address"),
        ({"url": "http://user:secret@a"}, "user name"),
        ({"url": "http://a?b=1"}, "query"),
        ({"key": "a\nb"}, "API key"),
        ({"key": "schlüssel"}, "API key"),
        ({"namespace": "a\r\nX: y"}, "namespace"),
        ({"url": "https://a", "verify": "/no/such/file.pem"}, "/no/such/file.pem"),
        ({"proxy": "ftp://a"}, "proxy"),
    ],
)
def test_arguments_that_cannot_be_used(options: dict[str, str], words: str) -> None:
    for kind in KINDS:
        with pytest.raises(errors.ConfigurationInvalid, match=words) as caught, opened(kind, **options):
            pass
        assert "secret" not in str(caught.value)


def test_a_key_is_in_no_repr() -> None:
    with opened("sync", "http://a", "vdx_secret", proxy="http://user:secret@p") as client:
        assert "secret" not in repr(client) + repr(vars(client))
