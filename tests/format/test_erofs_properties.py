"""Properties of every tree: image and dump give it back, nothing is changed on the way."""

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from bootwright.digest import Algorithm
from bootwright.erofs import dumpfile
from bootwright.erofs.dumptext import escape, escape_xattr, unescape
from bootwright.erofs.reader import read_image
from bootwright.erofs.tree import Inode, walk
from bootwright.erofs.writer import write_image
from fakes.trees import trees

VERSIONS = st.sampled_from([(0, 0), (0, 1), (1, 1)])
SETTINGS = settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large]
)


def dump(root: Inode) -> bytes:
    return b"".join(dumpfile.write(root))


@SETTINGS
@given(trees(), VERSIONS)
def test_image_and_dump_round_trip(root: Inode, versions: tuple[int, int]) -> None:
    before = dump(root)
    image = write_image(root, min_version=versions[0], max_version=versions[1])
    assert dump(root) == before, "the writer changed the tree"
    again = read_image(image)
    assert write_image(again, min_version=versions[0], max_version=versions[1]) == image
    parsed = dumpfile.parse(dump(again))
    assert write_image(parsed, min_version=versions[0], max_version=versions[1]) == image
    assert dump(parsed) == dump(again)


@SETTINGS
@given(trees())
def test_dump_text_round_trips(root: Inode) -> None:
    text = dump(root)
    assert dump(dumpfile.parse(text)) == text


@SETTINGS
@given(trees())
def test_names_and_kinds_survive_the_image(root: Inode) -> None:
    again = read_image(write_image(root))
    assert [path for path, _ in walk(root)] == [path for path, _ in walk(again)]


@SETTINGS
@given(trees())
def test_sha512_images_round_trip(root: Inode) -> None:
    for _, node in walk(root):
        if isinstance(node, Inode) and node.digest:
            node.digest *= 2
    image = write_image(root, algorithm=Algorithm.SHA512)
    assert write_image(read_image(image), algorithm=Algorithm.SHA512) == image


@given(st.binary())
def test_escapes_round_trip(text: bytes) -> None:
    assert unescape(escape(text)) == text
    assert unescape(escape_xattr(text)) == text
    assert all(0x21 <= byte <= 0x7E for byte in escape_xattr(text))
    assert b"=" not in escape_xattr(text)
