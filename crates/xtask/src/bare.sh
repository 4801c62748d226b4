# Enters $ROOT as a separate machine and runs the command there. $TOOLCHAIN is shared read-only, and
# $REGISTRY as a cache.
mount --bind "$ROOT" "$ROOT"
mount -t proc proc "$ROOT/proc"
mount --rbind /sys "$ROOT/sys"
mount --rbind /dev "$ROOT/dev"
mount -t tmpfs -o mode=0755 run "$ROOT/run"
mkdir -p "$ROOT/opt/rust" "$ROOT/root/.cargo/registry" "$ROOT/mnt"
mount --bind "$TOOLCHAIN" "$ROOT/opt/rust"
mount -o remount,bind,ro "$ROOT/opt/rust"
if [ -d "$REGISTRY" ]; then
    mount --bind "$REGISTRY" "$ROOT/root/.cargo/registry"
fi
cd "$ROOT"
pivot_root . mnt
umount -l /mnt
cd /root/airgapd
# This shell stays as process 1 and reaps orphans like an init. Some tests wait until a daemon is
# gone.
env -i HOME=/root PATH=/opt/rust/bin:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin \
    TERM="${TERM:-dumb}" "$@" || exit $?
exit 0
