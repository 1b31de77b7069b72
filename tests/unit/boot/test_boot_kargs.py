"""Kernel arguments against the kernel's own rules (lib/cmdline.c)."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bootwright.boot.kargs import MAX_LENGTH, Karg, Kargs, parse_drop_in
from bootwright.errors import BootError, ConfigError, UsageError

ID = "ab" * 32
OTHER = "cd" * 64


@pytest.mark.parametrize(
    ("text", "pairs"),
    [
        pytest.param("", [], id="empty"),
        pytest.param("  quiet\tro\n", [("quiet", None), ("ro", None)], id="white-space"),
        pytest.param("root=UUID=1-2", [("root", "UUID=1-2")], id="value-with-equals"),
        pytest.param('a="b c" d', [("a", "b c"), ("d", None)], id="quoted-value"),
        pytest.param('"a=b c" d', [("a", "b c"), ("d", None)], id="quoted-whole"),
        pytest.param('dyndbg="file a.c +p; file b.c +p"', [("dyndbg", "file a.c +p; file b.c +p")], id="dyndbg"),
        pytest.param('a="b c', [("a", "b c")], id="never-closed"),
        pytest.param("a=", [("a", "")], id="empty-value"),
        pytest.param("console=tty0 console=ttyS0", [("console", "tty0"), ("console", "ttyS0")], id="twice"),
    ],
)
def test_parse(text: str, pairs: list[tuple[str, str | None]]) -> None:
    assert [(argument.key, argument.value) for argument in Kargs.parse(text)] == pairs


def test_text_survives() -> None:
    text = 'root=UUID=1 a="b c" "d=e f" quiet'
    assert str(Kargs.parse(text)) == text


@pytest.mark.parametrize(
    ("before", "after"),
    [
        pytest.param("root=x composefs=old quiet", f"root=x composefs={ID} quiet", id="in-place"),
        pytest.param("composefs=a x composefs=b", f"composefs={ID} x", id="only-one-left"),
        pytest.param("root=x", f"root=x composefs={ID}", id="appended"),
    ],
)
def test_composefs_is_replaced_in_place(before: str, after: str) -> None:
    assert str(Kargs.parse(before).with_composefs(ID, verity_optional=False)) == after


def test_composefs_value() -> None:
    assert Kargs.parse(f"composefs={ID}").composefs_id == ID
    optional = Kargs.parse(f"composefs=?{OTHER}")
    assert optional.composefs_id == OTHER
    assert optional.is_verity_optional
    assert Kargs.parse("composefs=nonsense").composefs_id is None
    assert Kargs.parse("quiet").composefs_id is None


@pytest.mark.parametrize(
    ("machine", "old", "new", "result"),
    [
        pytest.param("root=x quiet", "quiet", "quiet", "root=x quiet", id="nothing-changed"),
        pytest.param("root=x quiet", "quiet", "", "root=x", id="dropped"),
        pytest.param("root=x", "", "quiet", "root=x quiet", id="added"),
        pytest.param("root=x mine=1", "a=1", "a=2", "root=x mine=1 a=2", id="locally-removed-then-changed"),
        pytest.param("a=1 mine", "a=1", "a=2", "mine a=2", id="changed"),
        pytest.param("a=9 mine", "a=1", "a=2", "a=9 mine a=2", id="locally-changed"),
        pytest.param("a_b=1", "a-b=1", "", "", id="dash-is-underscore"),
        pytest.param("quiet", "", "quiet", "quiet", id="there-already"),
    ],
)
def test_update_applies_the_difference_of_two_images(machine: str, old: str, new: str, result: str) -> None:
    updated = Kargs.parse(machine).updated(old=Kargs.parse(old), new=Kargs.parse(new))
    assert str(updated) == result


@pytest.mark.parametrize(
    ("text", "delete", "result"),
    [
        pytest.param("a=1 a=2 b", "a=1", "a=2 b", id="exact"),
        pytest.param("a=1 a=2 b", "a", "b", id="by-key"),
        pytest.param("a b", "c", "a b", id="missing"),
    ],
)
def test_delete(text: str, delete: str, result: str) -> None:
    assert str(Kargs.parse(text).delete(delete)) == result


def test_append_keeps_repeats_and_append_missing_does_not() -> None:
    kargs = Kargs.parse("console=tty0")
    assert str(kargs.append("console=tty0")) == "console=tty0 console=tty0"
    assert str(kargs.append_missing("console=tty0 quiet")) == "console=tty0 quiet"
    assert kargs.append("console=ttyS0").find("console") == "ttyS0"


def test_make_quotes_and_refuses() -> None:
    assert Karg.make("a", "b c").text == 'a="b c"'
    assert Karg.make("quiet", None).text == "quiet"
    for key, value in (("", "x"), ("a", 'b"c'), ("a", "b\nc")):
        with pytest.raises(UsageError):
            Karg.make(key, value)


def test_a_line_that_the_kernel_would_cut_is_refused() -> None:
    Kargs.parse("a" * MAX_LENGTH).check_length()
    with pytest.raises(BootError, match="2048 bytes"):
        Kargs.parse("a" * (MAX_LENGTH + 1)).check_length()


@given(st.lists(st.from_regex(r"[a-z_.]{1,8}(=[a-z0-9,:/ ]{0,8})?", fullmatch=True), max_size=8))
def test_made_arguments_come_back(words: list[str]) -> None:
    made = [Karg.make(key, value if separator else None) for key, separator, value in (w.partition("=") for w in words)]
    back = Kargs.parse(" ".join(argument.text for argument in made))
    assert [argument.canonical for argument in back] == [argument.canonical for argument in made]


@given(st.text(max_size=80))
def test_any_text_parses_and_settles(text: str) -> None:
    once = str(Kargs.parse(text))
    assert str(Kargs.parse(once)) == once


def test_drop_in() -> None:
    data = b'kargs = ["console=ttyS0,115200 quiet", "a=1"]\nmatch-architectures = ["x86_64"]\n'
    assert str(parse_drop_in(data, origin="x", architecture="x86_64")) == "console=ttyS0,115200 quiet a=1"
    assert str(parse_drop_in(data, origin="x", architecture="aarch64")) == ""


@pytest.mark.parametrize(
    "data",
    [
        pytest.param(b"kargs = [", id="toml"),
        pytest.param(b"\xff", id="utf-8"),
        pytest.param(b'kargs = "quiet"', id="no-list"),
        pytest.param(b"kargs = [1]", id="no-string"),
        pytest.param(b'match-architectures = ["x86_64"]', id="no-kargs"),
        pytest.param(b'kargs = ["a"]\nextra = 1', id="unknown-key"),
        pytest.param(b'kargs = ["a\\u0000b"]', id="zero-byte"),
    ],
)
def test_bad_drop_ins_are_named(data: bytes) -> None:
    with pytest.raises(ConfigError, match=r"10-x\.toml"):
        parse_drop_in(data, origin="10-x.toml", architecture="x86_64")
