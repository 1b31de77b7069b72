#!/bin/bash
# dracut module: boots the deployment that composefs= on the kernel command line names. Needs a systemd initramfs.
# shellcheck disable=SC2154  # dracut sets hostonly, systemdsystemunitdir, initdir, SYSTEMCTL

check() {
    require_binaries fsverity losetup modprobe mount umount || return 1
    # An initramfs for this very host gets it when asked for (--add bootwright), a generic one always: the module does
    # nothing unless composefs= is on the command line.
    [[ $hostonly ]] && return 255
    return 0
}

depends() {
    # The emergency shell a failure ends in is dracut-systemd's.
    echo dracut-systemd
}

installkernel() {
    hostonly='' instmods erofs overlay loop ext4
}

install() {
    inst_multiple cat fsverity ln losetup mkdir modprobe mount readlink rmdir umount
    inst_script /usr/lib/bootwright/root-setup /usr/lib/bootwright/root-setup
    inst_simple "$moddir/bootwright-root-setup.service" "$systemdsystemunitdir/bootwright-root-setup.service"
    # Required, not wanted: without it the physical root would be taken for the new root.
    $SYSTEMCTL -q --root "$initdir" add-requires initrd-root-fs.target bootwright-root-setup.service
}
