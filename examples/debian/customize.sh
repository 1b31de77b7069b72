#!/bin/sh
# Runs on the build host after mmdebstrap installed the base packages: build.py gives it the variant's settings.
#   $1           the root filesystem that is being made
#   FILES        directory of files that every image gets (files/common), and VARIANT_FILES of this variant's own
#   DEB          the package bootwright; its dependencies come from Debian
#   EXTRAS       packages that only this variant has
#   IMAGE_VERSION
set -eu
root=$1

# Files of this checkout, owned by root, whatever umask they were checked out with.
copy_tree() {
    tar -C "$1" --owner=0 --group=0 --mode='go-w,a+rX' -cf - . | tar -C "$root" --no-overwrite-dir -xf -
}

in_image() {
    chroot "$root" env DEBIAN_FRONTEND=noninteractive "$@"
}

copy_tree "$FILES"
cp "$DEB" "$root/tmp/bootwright.deb"
in_image apt-get install -q -y --no-install-recommends /tmp/bootwright.deb
rm "$root/tmp/bootwright.deb"

# Every variant has the same packages so far, so build.py can put them into layers that all variants share.
mkdir -p "$root/usr/lib/sysimage"
# shellcheck disable=SC2016  # dpkg-query expands it
in_image dpkg-query -W -f '${binary:Package}\n' >"$root/usr/lib/sysimage/base-packages"
# shellcheck disable=SC2086  # a list of names
[ -z "$EXTRAS" ] || in_image apt-get install -q -y --no-install-recommends $EXTRAS

in_image systemctl enable systemd-networkd.service systemd-resolved.service
# They look after LVM snapshots of ext4; there is no LVM here.
in_image systemctl disable e2scrub_all.timer e2scrub_reap.service
in_image /usr/lib/bootwright/prepare-image

# After the initramfs was made: it carries a copy of os-release, and should be the same in images with the same kernel.
printf 'IMAGE_ID=debian-demo\nIMAGE_VERSION=%s\n' "$IMAGE_VERSION" >>"$root/usr/lib/os-release"
copy_tree "$VARIANT_FILES"
# mmdebstrap put the build host's there.
ln -sf ../run/systemd/resolve/stub-resolv.conf "$root/etc/resolv.conf"
