import click
import pytest
from click.testing import CliRunner

from bootwright.cli import image
from bootwright.cli.options import TLS_VERIFY


@click.command()
@TLS_VERIFY
@click.argument("rest", nargs=-1)
def command(tls_verify: bool, rest: tuple[str, ...]) -> None:
    click.echo(f"{tls_verify} {' '.join(rest)}")


@pytest.mark.parametrize(
    ("arguments", "printed"),
    [
        pytest.param(["x"], "True x", id="default"),
        pytest.param(["--tls-verify=false", "x"], "False x", id="podman-false"),
        pytest.param(["--tls-verify=TRUE", "x"], "True x", id="podman-true"),
        pytest.param(["x", "--tls-verify=0"], "False x", id="behind"),
        pytest.param(["--", "--tls-verify=false"], "True --tls-verify=false", id="after-dashes"),
    ],
)
def test_tls_verify_takes_podmans_spelling(arguments: list[str], printed: str) -> None:
    result = CliRunner().invoke(command, arguments)
    assert result.exit_code == 0, result.output
    assert result.output.strip() == printed


def test_neither_true_nor_false() -> None:
    result = CliRunner().invoke(command, ["--tls-verify=maybe"])
    assert result.exit_code == 2
    assert "'maybe' is not a valid boolean" in result.output


@pytest.mark.parametrize(
    ("user", "expected"),
    [pytest.param(0, "/sysroot/composefs", id="root"), pytest.param(1000, "/home/u/.var/lib/composefs", id="user")],
)
def test_default_repository(monkeypatch: pytest.MonkeyPatch, user: int, expected: str) -> None:
    monkeypatch.setattr("os.geteuid", lambda: user)
    monkeypatch.setenv("HOME", "/home/u")
    assert image._get_path(None) == expected
    assert image._get_path("/elsewhere") == "/elsewhere"
