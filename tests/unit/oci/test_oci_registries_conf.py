from __future__ import annotations

from pathlib import Path

import pytest

from bootwright.errors import ConfigError
from bootwright.oci.reference import ImageReference
from bootwright.oci.registries_conf import find_endpoint, parse_registries_conf, read_registries_conf

A_IO = '[[registry]]\nlocation="a.io"'


def endpoint(conf: str, text: str) -> tuple[str, str, bool]:
    rules = parse_registries_conf(conf, origin="f")
    found = find_endpoint(ImageReference.parse(text, default_transport="registry"), rules)
    return found.host, found.repository, found.insecure


@pytest.mark.parametrize(
    ("conf", "text", "expected"),
    [
        pytest.param("", "a.io/x", ("a.io", "x", False), id="nothing"),
        pytest.param("", "debian", ("registry-1.docker.io", "library/debian", False), id="hub"),
        pytest.param(f"{A_IO}\ninsecure=true", "a.io/x", ("a.io", "x", True), id="insecure"),
        pytest.param(f"{A_IO}\ninsecure=true", "a.io:5000/x", ("a.io:5000", "x", True), id="port"),
        pytest.param(f"{A_IO}\ninsecure=true", "a.iox/x", ("a.iox", "x", False), id="boundary"),
        pytest.param(
            '[[registry]]\nprefix="a.io/ns"\nlocation="b.io/other"',
            "a.io/ns/x",
            ("b.io", "other/x", False),
            id="location",
        ),
        pytest.param(
            '[[registry]]\nprefix="a.io"\ninsecure=true\n[[registry]]\nprefix="a.io/ns"\nlocation="b.io/n"',
            "a.io/ns/x",
            ("b.io", "n/x", False),
            id="longest-prefix",
        ),
        pytest.param('[[registry]]\nprefix="*.io"\ninsecure=true', "x.y.io/z", ("x.y.io", "z", True), id="wildcard"),
        pytest.param('[[registry]]\nprefix="*.y.io"\ninsecure=true', "y.io/z", ("y.io", "z", False), id="no-wildcard"),
        pytest.param(
            'unqualified-search-registries=["x"]\n[[registry]]\nlocation="a.io"\n[[registry.mirror]]\nlocation="m.io"',
            "a.io/x",
            ("a.io", "x", False),
            id="keys-of-others",
        ),
        pytest.param(
            '[[registry]]\nprefix="a.io"\nlocation="docker.io/library"',
            "a.io/debian",
            ("registry-1.docker.io", "library/debian", False),
            id="to-hub",
        ),
    ],
)
def test_endpoint(conf: str, text: str, expected: tuple[str, str, bool]) -> None:
    assert endpoint(conf, text) == expected


def test_blocked() -> None:
    with pytest.raises(ConfigError, match=r"'a\.io/ns' is blocked"):
        endpoint('[[registry]]\nprefix="a.io/ns"\nblocked=true', "a.io/ns/x")


@pytest.mark.parametrize(
    ("conf", "reason"),
    [
        ("[", "no TOML"),
        ("registry = 3", "no list of tables"),
        ("registry = [3]", "no list of tables"),
        ("[[registry]]", "neither prefix nor location"),
        ('[[registry]]\nlocation="https://a.io"', "must not have a scheme"),
        ('[[registry]]\nlocation="a.io"\ninsecure="yes"', "'insecure' .* is not a bool"),
        ("[[registry]]\nlocation=5", "'location' .* is not a str"),
    ],
)
def test_malformed(conf: str, reason: str) -> None:
    with pytest.raises(ConfigError, match=reason):
        parse_registries_conf(conf, origin="f.conf")


def test_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CONTAINERS_REGISTRIES_CONF", raising=False)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    monkeypatch.setattr("bootwright.oci.registries_conf._DIRECTORIES", (str(tmp_path / "etc"),))
    assert read_registries_conf() == []
    for folder in ("etc", "containers"):
        (tmp_path / folder / "registries.conf.d").mkdir(parents=True)
    (tmp_path / "etc/registries.conf").write_text('[[registry]]\nlocation="system.io"')
    (tmp_path / "etc/registries.conf.d/50-x.conf").write_text('[[registry]]\nlocation="a.io"\ninsecure=true')
    (tmp_path / "etc/registries.conf.d/ignored.txt").write_text("not read")
    assert [(rule.prefix, rule.insecure) for rule in read_registries_conf()] == [("system.io", False), ("a.io", True)]
    # A user's main file is read instead of the system's; a later drop-in replaces a rule.
    (tmp_path / "containers/registries.conf").write_text('[[registry]]\nlocation="user.io"')
    (tmp_path / "containers/registries.conf.d/60-y.conf").write_text('[[registry]]\nlocation="a.io"\ninsecure=false')
    assert [(rule.prefix, rule.insecure) for rule in read_registries_conf()] == [("user.io", False), ("a.io", False)]


def test_given_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "r.conf"
    path.write_text('[[registry]]\nlocation="given.io"')
    assert [rule.prefix for rule in read_registries_conf(str(path))] == ["given.io"]
    monkeypatch.setenv("CONTAINERS_REGISTRIES_CONF", str(path))
    assert [rule.prefix for rule in read_registries_conf()] == ["given.io"]
    with pytest.raises(ConfigError, match="cannot read"):
        read_registries_conf(str(tmp_path / "missing"))
