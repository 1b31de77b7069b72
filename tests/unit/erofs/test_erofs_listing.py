"""composefs-info's text."""

from bootwright.erofs import dumpfile
from bootwright.erofs.listing import format_list, list_objects
from bootwright.erofs.reader import read_image
from bootwright.erofs.writer import write_image

# The worked example of the format's description.
DIGEST = b"5a" * 32
DUMP = (
    b"/ 0 40755 2 0 0 0 0.0 - - - user.a=b\n"
    b"/a\\x20b 70 100644 2 0 0 0 1.5 5a/5a - " + DIGEST + b"\n"
    b"/c 3 100644 1 0 0 0 1.5 - x\\n\\x01 -\n"
    b"/d 0 40755 2 0 0 0 0.0 - - -\n"
    b"/d/l 0 120777 1 0 0 0 0.0 a\\x20b - -\n"
    b"/h 0 @100644 - - - - - /a\\x20b - -\n"
    b"/w 0 20644 1 0 0 0 0.0 - - -\n"
    b"/dv 0 20644 1 0 0 259 0.0 - - -\n"
)


def test_worked_example() -> None:
    root = read_image(write_image(dumpfile.parse(DUMP)))
    assert b"".join(format_list(root)) == b"/a b\t@ 5a/5a\n/c\n/d/\t\n/d/l\t-> a\\x20b\n/dv\n/h\n/w\n"
    assert list_objects(root) == {b"5a/5a"}
    assert b"".join(dumpfile.write(root)) == (
        b"/ 4096 40755 3 0 0 0 0.0 - - - trusted.overlay.opaque=x user.a=b user.overlay.opaque=x\n"
        b"/a\\x20b 70 100644 2 0 0 0 1.5 5a/5a - " + DIGEST + b"\n"
        b"/c 3 100644 1 0 0 0 1.5 - x\\n\\x01 -\n"
        b"/d 40 40755 2 0 0 0 0.0 - - -\n"
        b"/d/l 3 120777 1 0 0 0 0.0 a\\x20b - -\n"
        b"/dv 0 20644 1 0 0 259 0.0 - - -\n"
        b"/h 70 @100644 2 0 0 0 1.5 /a\\x20b - " + DIGEST + b"\n"
        b"/w 0 20644 1 0 0 0 0.0 - - -\n"
    )


def test_filter() -> None:
    root = dumpfile.parse(DUMP)
    assert b"".join(format_list(root, [b"d"])) == b"/d/\t\n/d/l\t-> a\\x20b\n"
    assert list_objects(root, [b"d"]) == set()
    # A link shows where it leads when the other name is filtered out.
    assert b"".join(format_list(root, [b"h"])) == b"/h\t@ 5a/5a\n"
