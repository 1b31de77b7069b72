import click
import pytest
from click.testing import CliRunner

from bootwright.cli import image
from bootwright.cli.image import PodmanBooleans


@click.command(cls=PodmanBooleans)
@click.option("--tls-verify/--no-tls-verify", default=True)
@click.option("--name")
@click.argument("rest", nargs=-1)
def command(tls_verify: bool, name: str | None, rest: tuple[str, ...]) -> None:
    click.echo(f"{tls_verify} {name} {' '.join(rest)}")


@pytest.mark.parametrize(
    ("arguments", "printed"),
    [
        pytest.param([], "True None", id="default"),
        pytest.param(["--tls-verify"], "True None", id="bare"),
        pytest.param(["--no-tls-verify", "x"], "False None x", id="click"),
        pytest.param(["--tls-verify=false", "x"], "False None x", id="podman-false"),
        pytest.param(["--tls-verify=TRUE", "x"], "True None x", id="podman-true"),
        pytest.param(["x", "--tls-verify=0"], "False None x", id="behind"),
        pytest.param(["--name=a=b", "--", "--tls-verify=false"], "True a=b --tls-verify=false", id="after-dashes"),
    ],
)
def test_podman_booleans(arguments: list[str], printed: str) -> None:
    result = CliRunner().invoke(command, arguments)
    assert result.exit_code == 0, result.output
    assert result.output.strip() == printed


def test_neither_true_nor_false() -> None:
    result = CliRunner().invoke(command, ["--tls-verify=maybe"])
    assert result.exit_code == 2
    assert "'maybe' is neither true nor false" in result.output


@pytest.mark.parametrize(
    ("user", "expected"),
    [pytest.param(0, "/sysroot/composefs", id="root"), pytest.param(1000, "/home/u/.var/lib/composefs", id="user")],
)
def test_default_repository(monkeypatch: pytest.MonkeyPatch, user: int, expected: str) -> None:
    monkeypatch.setattr("os.geteuid", lambda: user)
    monkeypatch.setenv("HOME", "/home/u")
    assert image._get_path(None) == expected
    assert image._get_path("/elsewhere") == "/elsewhere"
