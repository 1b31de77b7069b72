"""The mount table, as proc_pid_mountinfo(5) describes it."""

from bootwright.linux.mountinfo import find_mount, parse_mountinfo

ID = "ab" * 32
TABLE = f"""\
25 1 0:23 / / ro,relatime shared:1 - overlay composefs:{ID} ro,lowerdir=/a::/b,metacopy=on
26 25 254:2 / /sysroot ro,relatime - ext4 /dev/vda2 rw
27 25 254:2 /state/deploy/x/etc /etc rw shared:2 master:3 - ext4 /dev/vda2 rw
28 25 0:30 / /mnt/with\\040space rw - tmpfs none rw,size=1k
29 25 0:31 / /etc rw - tmpfs over rw
30 25 0:32 / /x rw - autofs
nonsense
31 25 x:y / /y rw - tmpfs none rw
"""


def test_parse() -> None:
    mounts = parse_mountinfo(TABLE)
    assert [mount.target for mount in mounts] == ["/", "/sysroot", "/etc", "/mnt/with space", "/etc"]
    root = mounts[0]
    assert (root.device, root.fstype, root.source) == ((0, 23), "overlay", f"composefs:{ID}")
    assert root.is_read_only
    assert mounts[1].is_read_only, "the mount is read-only, its filesystem is not"
    assert mounts[2].root == "/state/deploy/x/etc"
    assert not mounts[2].is_read_only


def test_the_last_mount_hides_the_ones_before() -> None:
    mounts = parse_mountinfo(TABLE)
    found = find_mount(mounts, "/etc")
    assert found is not None
    assert found.source == "over"
    assert find_mount(mounts, "/nothing") is None


def test_this_machine_has_a_root() -> None:
    with open("/proc/self/mountinfo", encoding="utf-8") as file:
        assert find_mount(parse_mountinfo(file.read()), "/") is not None
