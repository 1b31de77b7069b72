from __future__ import annotations

import base64
import contextlib
import json
import os
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bootwright.errors import AuthenticationError, BootwrightError, ConfigError
from bootwright.oci.auth import (
    Challenge,
    find_credentials,
    list_auth_files,
    parse_auth_file,
    parse_challenges,
    parse_token,
)


def encode(text: str) -> str:
    return base64.b64encode(text.encode()).decode()


def auth_file(**entries: str) -> bytes:
    return json.dumps({"auths": {key: {"auth": encode(value)} for key, value in entries.items()}}).encode()


@pytest.mark.parametrize(
    ("headers", "expected"),
    [
        pytest.param(
            ['Bearer realm="https://a/token",service="reg",scope="repository:x:pull,push"'],
            [("bearer", {"realm": "https://a/token", "service": "reg", "scope": "repository:x:pull,push"})],
            id="bearer",
        ),
        pytest.param(['Basic realm="x"'], [("basic", {"realm": "x"})], id="basic"),
        pytest.param(
            ['Basic realm="x", Bearer realm="y" , service=z'],
            [("basic", {"realm": "x"}), ("bearer", {"realm": "y", "service": "z"})],
            id="two-in-one",
        ),
        pytest.param(["Basic", 'BEARER REALM="y"'], [("basic", {}), ("bearer", {"realm": "y"})], id="two-headers"),
        pytest.param([r'Basic realm="a \"b\" \\c"'], [("basic", {"realm": r'a "b" \c'})], id="escapes"),
        pytest.param(['Bearer realm="a",realm="b"'], [("bearer", {"realm": "a"})], id="first-wins"),
        pytest.param(['Bearer realm="open'], [("bearer", {})], id="open-quote"),
        pytest.param(["", "  ", "=", '"'], [], id="nothing"),
        pytest.param(["Negotiate dG9rZW4="], [("negotiate", {})], id="token68"),
    ],
)
def test_challenges(headers: list[str], expected: list[tuple[str, dict[str, str]]]) -> None:
    found = parse_challenges(headers)
    assert found[: len(expected)] == [Challenge(*challenge) for challenge in expected]


@given(st.text(max_size=300))
def test_any_header_is_parsed(header: str) -> None:
    for challenge in parse_challenges([header, 'Bearer realm="' + header]):
        assert challenge.scheme == challenge.scheme.lower()


def test_most_specific_entry_wins() -> None:
    content = json.dumps(
        {
            "auths": {
                "reg.io": {"auth": encode("host:1")},
                "reg.io/ns": {"auth": encode("ns:2")},
                "reg.io/ns/repo": {"auth": encode("repo:3")},
                "https://index.docker.io/v1/": {"auth": encode("hub:4")},
                "http://old.io/v2/": {"auth": encode("old:5")},
                "empty.io": {},
                "token.io": {"identitytoken": "x"},
            },
            "credHelpers": {"x": "y"},
        }
    ).encode()
    entries = parse_auth_file(content, origin="f")
    assert entries["reg.io/ns/repo"].username == "repo"
    assert entries["docker.io"].password == "4"
    assert entries["old.io"].username == "old"
    assert "empty.io" not in entries
    assert "token.io" not in entries
    assert entries["reg.io"].basic == "Basic " + encode("host:1")
    assert "1" not in repr(entries["reg.io"])


def test_lookup(tmp_path: Path) -> None:
    path = tmp_path / "auth.json"
    path.write_bytes(auth_file(**{"reg.io:5000": "a:1", "reg.io:5000/ns": "b:2"}))

    def find(host: str, repository: str) -> str | None:
        found = find_credentials(host, repository, str(path))
        return found.username if found else None

    assert find("reg.io:5000", "x") == "a"
    assert find("reg.io:5000", "ns/x/y") == "b"
    assert find("reg.io:5000", "nsx") == "a"
    assert find("reg.io", "ns/x") is None


def test_search_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("REGISTRY_AUTH_FILE", raising=False)
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path / "run"))
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    monkeypatch.setenv("DOCKER_CONFIG", str(tmp_path / "docker"))
    files = list_auth_files()
    assert files[:2] == ["/run/ostree/auth.json", "/etc/ostree/auth.json"]
    assert files[3:] == [
        str(tmp_path / "run/containers/auth.json"),
        str(tmp_path / "config/containers/auth.json"),
        str(tmp_path / "docker/config.json"),
    ]
    for number, name in enumerate(files[3:]):
        os.makedirs(os.path.dirname(name))
        Path(name).write_bytes(auth_file(**{"only.test": f"user{number}:x", f"h{number}.test": "y:z"}))

    def find(host: str) -> str | None:
        found = find_credentials(host, "x")
        return f"{found.username} {found.origin}" if found else None

    assert find("only.test") == f"user0 {files[3]}"
    assert find("h2.test") == f"y {files[5]}"
    assert find("nowhere.test") is None

    monkeypatch.setenv("REGISTRY_AUTH_FILE", files[4])
    assert find("only.test") == f"user1 {files[4]}"
    assert find("h2.test") is None


def test_given_file_must_exist(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot read the credentials file"):
        find_credentials("a.io", "x", str(tmp_path / "missing"))


@pytest.mark.parametrize(
    "content",
    [
        pytest.param(b"{", id="no-json"),
        pytest.param(b"[]", id="list"),
        pytest.param(b'{"auths": []}', id="auths-list"),
        pytest.param(b'{"auths": {"a": {"auth": 5}}}', id="number"),
        pytest.param(b'{"auths": {"a": {"auth": "!!secret!!"}}}', id="no-base64"),
        pytest.param(json.dumps({"auths": {"a": {"auth": encode("secret")}}}).encode(), id="no-colon"),
        pytest.param(json.dumps({"auths": {"a": {"auth": encode("u:secret\r\nX: y")}}}).encode(), id="newline"),
        pytest.param(b"\xff", id="no-utf8"),
    ],
)
def test_malformed_files(content: bytes) -> None:
    with pytest.raises(ConfigError, match=r"'auth\.json'") as caught:
        parse_auth_file(content, origin="auth.json")
    assert "secret" not in caught.value.message
    assert "podman login" in (caught.value.hint or "")


def test_empty_files() -> None:
    assert parse_auth_file(b"", origin="f") == {}
    assert parse_auth_file(b"{}", origin="f") == {}
    assert parse_auth_file(b'{"auths": null}', origin="f") == {}


def test_tokens() -> None:
    assert parse_token(b'{"token": "abc"}', realm="r").value == "abc"
    assert parse_token(b'{"access_token": "def", "expires_in": 3600}', realm="r").value == "def"
    short = parse_token(b'{"token": "abc", "expires_in": 1}', realm="r")
    assert short.expires_at - time.monotonic() > 50
    assert "abc" not in repr(short)


@pytest.mark.parametrize(
    "content", [b"", b"{}", b"[]", b'{"token": 5}', b'{"token": "a\\nb"}', b'{"token": ""}', b"\xff"]
)
def test_bad_tokens(content: bytes) -> None:
    with pytest.raises(AuthenticationError, match="'r'"):
        parse_token(content, realm="r")


@given(st.binary(max_size=100))
def test_any_bytes_are_parsed_or_refused(content: bytes) -> None:
    for parse in (lambda: parse_token(content, realm="r"), lambda: parse_auth_file(content, origin="f")):
        with contextlib.suppress(BootwrightError):
            parse()
