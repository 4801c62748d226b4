#!/bin/sh
# Runs as root inside a fresh Debian that systemd has booted. The script types the commands of the
# README like an operator. /root has the package and the bundles. The last line of the output is
# PASSED, or the output ends with the step that failed.
set -eux
export DEBIAN_FRONTEND=noninteractive PAGER=cat SYSTEMD_COLORS=0
images=/var/lib/k0s/images
hello=registry.example/demo/hello:1.0

# Tries a command for up to 40 seconds.
eventually() {
    for _ in $(seq 200); do "$@" && return; sleep 0.2; done
    "$@"
}
# Runs a command that must fail. `set -e` does not stop a script at a command after an exclamation
# mark.
never() { if "$@"; then exit 1; fi; }
has() { printf '%s\n' "$1" | grep -q "$2"; }
as_nobody() { setpriv --reuid=65534 --regid=65534 --clear-groups "$@"; }
property() { systemctl show -P "$1" airgapd; }
status_text() { property StatusText | grep -q "$1"; }
in_journal() { journalctl -u airgapd --no-pager -o cat | grep -q "$1"; }
# Runs a program from an image. The image is mounted and not started as a container. A container
# would need control groups, and this system may not create any.
run_from() {
    ctr -n k8s.io images mount "$1" /mnt > /dev/null
    shift
    chroot /mnt "$@"
    ctr -n k8s.io images unmount --rm /mnt > /dev/null
}
in_containerd() { ctr -n k8s.io images ls -q | grep -qx "$1"; }

# 1. The package is installed, and the daemon runs.
dpkg-query -W systemd containerd
apt-get install -y /root/airgapd.deb
systemctl is-enabled airgapd
systemctl is-active airgapd
airgapd --version
test -e /usr/share/man/man1/airgapd.1.gz
test -e /usr/share/bash-completion/completions/airgapd

# 2. systemd has no complaint about the unit, and the unit is hardened.
systemd-analyze verify --man=no /lib/systemd/system/airgapd.service > /root/complaints 2>&1 || cat /root/complaints
cat /root/complaints
never grep airgapd /root/complaints
drop_ins=/usr/share/doc/airgapd/drop-ins
own=/etc/systemd/system/airgapd.service.d
mkdir -p $own
for drop_in in k0s k3s containerd metrics; do
    cp $drop_ins/$drop_in.conf $own
    systemctl daemon-reload
    systemd-analyze verify --man=no airgapd.service > /root/complaints 2>&1
    never grep airgapd /root/complaints
    rm $own/$drop_in.conf
done
systemctl daemon-reload
systemd-analyze security --no-pager airgapd.service | grep -v '^✓'
systemd-analyze security --threshold=10 airgapd.service > /dev/null
systemd-analyze verify --man=no airgapd-scrub.service airgapd-scrub.timer > /root/complaints 2>&1
never grep airgapd /root/complaints
never systemctl is-enabled airgapd-scrub.timer

# 3. The node runs its own containerd. The drop-in for it creates the images folder. A bundle is
#    copied before containerd runs. The daemon waits, and imports the bundle when containerd is up.
never test -e $images
install -D -m 0644 $drop_ins/containerd.conf $own/containerd.conf
systemctl daemon-reload
systemctl restart airgapd
test -d $images
cp /root/demo.tar $images
eventually in_journal 'no containerd on'
eventually status_text 'waiting for containerd'
systemctl start containerd
airgapd wait --bundle demo.tar --timeout 60s
airgapd status
airgapd doctor
in_containerd $hello
ctr -n k8s.io images check | grep "$hello .*complete"
run_from $hello /bin/sh -c "cat /etc/hello"

# 4. Another user can read the metrics, but neither the control socket nor the state.
eventually as_nobody grep 'airgapd_bundles{state="done"} 1' /run/airgapd/airgapd.prom
never as_nobody airgapd wait --timeout 0s
never as_nobody cat /var/lib/airgapd/state.json

# 5. An image is deleted and restored.
ctr -n k8s.io images rm $hello
eventually in_containerd $hello

# 6. The decompression of a bundle takes 128 MiB of memory. The peak stays below the unit's
#    MemoryHigh=, which only works if this container has control groups.
cp /root/wide.tar.zst $images
airgapd wait --bundle wide.tar.zst --timeout 120s
in_containerd registry.example/demo/wide:1.0
peak=$(awk '/VmHWM/ { print $2 }' "/proc/$(property MainPID)/status")
grep -q '^MemoryHigh=320M$' /lib/systemd/system/airgapd.service
test "$peak" -gt $((128 << 10))
test "$peak" -lt $((320 << 10))
rm $images/wide.tar.zst

# 7. The journal has airgapd's own fields, message ids, and an explanation of each id.
journalctl -u airgapd -o json --no-pager > /root/journal.json
grep '"AIRGAPD_OUTCOME":"imported"' /root/journal.json | head -n 1
grep '"MESSAGE_ID":"8556b10ba49d4573ae06291804dbd4ca"' /root/journal.json | grep -c '"AIRGAPD_BUNDLE":"demo.tar"'
grep '"MESSAGE_ID":"315594b37c034c658c846fc8d3dd5493"' /root/journal.json | grep -c '"_TRANSPORT":"journal"'
journalctl -u airgapd -x --no-pager > /root/journal
grep -m 1 -A 9 'Subject: The images of bundle demo.tar are in containerd' /root/journal
grep -A 9 -m 1 'Subject: containerd cannot be reached' /root/journal
test "$(journalctl --list-catalog --no-pager | grep -c 'airgapd:')" = "$(grep -c '^-- ' /usr/lib/systemd/catalog/airgapd.catalog)"

# The journal explains a file that is no bundle and the remedy. A thousand such files do not make a
# thousand lines, and the journal drops no line.
echo 'no bundle' > $images/bad.tar
never airgapd wait --bundle bad.tar --timeout 90s
eventually in_journal 'bad.tar'
journalctl -u airgapd -x --no-pager | grep -A 7 -m 1 'Subject: .* bad.tar'
rm $images/bad.tar
seconds=$(date +%s)
for number in $(seq 1000); do seq 200 > "$images/photo-$number.jpg"; done
eventually in_journal 'more files were not imported'
never airgapd wait --timeout 60s
test "$(journalctl -u airgapd --since "@$seconds" -o cat --no-pager | wc -l)" -lt 100
never grep 'Suppressed .* from airgapd' /root/journal
journalctl -u systemd-journald --since "@$seconds" -o cat --no-pager > /root/of-journald
never grep Suppressed /root/of-journald
rm $images/photo-*
airgapd wait --timeout 60s

# 8. The daemon reloads the configuration. After a mistake, a start fails and systemd does not retry
#    it.
before=$(property MainPID)
echo 'exclude: ["registry.example/other/*"]' >> /etc/airgapd/config.yaml
sed -i '/^exclude: \[\]/d' /etc/airgapd/config.yaml
systemctl reload airgapd
eventually in_journal exclude
test "$(property MainPID)" = "$before"
cp /etc/airgapd/config.yaml /root/config.yaml
echo 'resync: soon' > /etc/airgapd/config.yaml
never systemctl restart airgapd
test "$(property ExecMainStatus)" = 2
sleep 5
test "$(property NRestarts)" = 0
test "$(property ActiveState)" = failed
journalctl -u airgapd --no-pager -o cat -n 6
airgapd config --check || test $? = 2
cp /root/config.yaml /etc/airgapd/config.yaml
found=$(airgapd doctor || true)
has "$found" 'PROBLEM *unit *airgapd.service has failed (exit-code)'
has "$found" 'PROBLEM *daemon *it is not running'
systemctl restart airgapd
airgapd wait --timeout 60s
echo 'resync: soon' >> /etc/airgapd/config.yaml
systemctl reload airgapd
eventually in_journal 'the new configuration was rejected'
journalctl -u airgapd -x --no-pager | grep -A 6 -m 1 'Subject: The new configuration has mistakes'
cp /root/config.yaml /etc/airgapd/config.yaml

# The doctor reports the state of the unit itself.
systemctl disable airgapd
has "$(airgapd doctor)" 'note *unit *airgapd.service is disabled'
systemctl enable airgapd
has "$(airgapd doctor)" 'ok *unit'
has "$(AIRGAPD_IMAGES_DIR=/root/bundles airgapd doctor || true)" 'PROBLEM *unit .*/root/bundles: ProtectHome='

# Nine incidents. Every output reports the same verdict for each.
. /root/incidents.sh

# 9. The watchdog restarts a daemon that hangs, but not a daemon that works or waits.
printf '[Service]\nWatchdogSec=2s\nLimitCORE=0\n' > $own/watchdog.conf
systemctl daemon-reload
systemctl restart airgapd
sleep 7
test "$(property NRestarts)" = 0
kill -STOP "$(property MainPID)"
began_anew() { test "$(property NRestarts)" = 1 && systemctl is-active airgapd; }
eventually began_anew
airgapd wait --timeout 60s

# 10. A k0s controller without a worker has nothing to do. The daemon reports no fault, and the
#     watchdog does not fire. The daemon notices without a restart that the controller is gone.
install -m 0755 /root/k0s /usr/local/bin/k0s
printf '[Service]\nExecStart=/usr/local/bin/k0s controller\n' > /etc/systemd/system/k0scontroller.service
systemctl daemon-reload
systemctl restart airgapd
sleep 7
property StatusText | grep 'idle: a controller without a worker'
test "$(property NRestarts)" = 0
rm /etc/systemd/system/k0scontroller.service /usr/local/bin/k0s
eventually in_journal 'restarting the daemon'
eventually airgapd wait --timeout 10s
test "$(property NRestarts)" = 0
rm $own/watchdog.conf
systemctl daemon-reload
systemctl restart airgapd
airgapd wait --timeout 60s

# 11. The daemon stops without SIGKILL, with work in flight or without.
systemctl stop airgapd
test "$(property Result)" = success
systemctl start airgapd
airgapd wait --timeout 60s
cp /root/wide.tar.zst $images/again.tar.zst
systemctl stop airgapd
test "$(property Result)" = success
rm $images/again.tar.zst
systemctl start airgapd
journalctl -u airgapd -b --no-pager -o cat > /root/all
never grep 'with signal SIGKILL' /root/all

# 12. A program from airgapd's own image runs after airgapd has imported the image.
cp /root/airgapd-image.tar $images
airgapd wait --bundle airgapd-image.tar --timeout 60s
image=$(ctr -n k8s.io images ls -q | grep '/airgapd:')
test "$(run_from "$image" /usr/bin/airgapd --version)" = "$(airgapd --version)"

# 13. The package is replaced during an import. Nothing is lost, and no command is needed.
sed -i -e 's/^rateLimit: null/rateLimit: 10MiB/' -e 's/^grace: 20s/grace: 1s/' /etc/airgapd/config.yaml
systemctl restart airgapd
# The blobs disappear with the last record. CRI's own records count too.
wide=$(ctr -n k8s.io images ls | awk '$1 == "registry.example/demo/wide:1.0" { print $3 }')
ctr -n k8s.io images ls | awk -v wide="$wide" '$3 == wide { print $1 }' | xargs ctr -n k8s.io images rm --sync > /dev/null
cp /root/wide.tar.zst $images/upgrade.tar.zst
is_importing() { airgapd status -o json | grep -q '"state": "importing"'; }
eventually is_importing
before=$(property MainPID)
apt-get install -y --reinstall /root/airgapd.deb
test "$(property MainPID)" != "$before"
in_journal 'continues at the next start'
airgapd wait --bundle upgrade.tar.zst --timeout 120s
in_containerd registry.example/demo/wide:1.0
rm $images/upgrade.tar.zst
cp /root/config.yaml /etc/airgapd/config.yaml
systemctl restart airgapd
airgapd wait --timeout 60s

# 14. A removal reports how many records keep airgapd's labels. It neither fails nor waits for a
#     containerd that does not answer.
removed=$(apt-get remove -y airgapd 2>&1)
has "$removed" "labels and pins: [1-9][0-9]*\."
has "$removed" 'airgapd release --all'
apt-get install -y /root/airgapd.deb
kill -STOP "$(systemctl show -P MainPID containerd)"
seconds=$(date +%s)
removed=$(apt-get remove -y airgapd 2>&1)
kill -CONT "$(systemctl show -P MainPID containerd)"
has "$removed" 'could not be counted'
test $(($(date +%s) - seconds)) -lt 60
apt-get install -y /root/airgapd.deb
airgapd wait --timeout 60s

# 15. airgapd is removed from the node.
systemctl disable --now airgapd
airgapd release --all
ctr -n k8s.io images ls > /root/records
never grep -F io.airgapd /root/records
in_containerd $hello
apt-get purge -y airgapd
rm -r $own
find / -xdev \( -path /proc -o -path /sys -o -path /root -o -path /var/cache/apt -o -path /var/lib/apt \
    -o -path /var/log -o -path /var/lib/containerd -o -path $images \) -prune -o -name '*airgapd*' -print > /root/left
cat /root/left
never grep . /root/left
never systemctl cat airgapd.service
ls $images
echo PASSED
