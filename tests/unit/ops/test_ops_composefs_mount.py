"""Options of mount.composefs."""

import pytest

from bootwright.errors import BootwrightError, UsageError
from bootwright.linux.composefs import Verity
from bootwright.ops.composefs_mount import parse_options

HEX = "ab" * 32


def test_everything() -> None:
    options = parse_options(
        [f"basedir=/a:/b\\:c,digest={HEX.upper()},rw", "upperdir=/u\\,v,workdir=/w,idmap=/proc/1/ns/user"]
    )
    assert options.base_dirs == ["/a", "/b:c"]
    assert options.digest is not None
    assert options.digest.hex == HEX
    assert (options.upper, options.work, options.idmap) == ("/u,v", "/w", "/proc/1/ns/user")
    assert options.read_only is False


def test_basedir_may_repeat_and_nothing_is_fine() -> None:
    assert parse_options(["basedir=/a,,basedir=/b"]).base_dirs == ["/a", "/b"]
    assert parse_options([]).verity is Verity.OFF


@pytest.mark.parametrize(
    ("text", "verity"),
    [
        ("verity", Verity.REQUIRE),
        ("tryverity", Verity.TRY),
        ("verity,tryverity", Verity.REQUIRE),
        ("tryverity,verity", Verity.REQUIRE),
    ],
)
def test_verity(text: str, verity: Verity) -> None:
    assert parse_options([text]).verity is verity


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("noverity", "unknown mount option 'noverity'"),
        ("basedir", "'basedir' needs a value"),
        ("basedir=", "'basedir' needs a value"),
        ("ro=1", "'ro' takes no value"),
        ("digest=abc", "is not an fs-verity digest"),
    ],
)
def test_wrong_options(text: str, reason: str) -> None:
    with pytest.raises(BootwrightError, match=reason):
        parse_options([text])
    assert issubclass(UsageError, BootwrightError)
