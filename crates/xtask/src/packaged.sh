#!/bin/sh
# Runs as root inside a fresh Debian that systemd has booted: what an operator would do, with the words of the README.
# /root has the package and a bundle. The last line of the output is PASSED, or the step that failed is the last one.
set -eux
export DEBIAN_FRONTEND=noninteractive PAGER=cat
bundle=/var/lib/k0s/images/demo.tar

apt-get install -y /root/airgapd.deb
systemctl is-enabled airgapd
systemctl is-active airgapd
systemd-analyze verify airgapd.service
systemd-analyze security --no-pager airgapd.service | tail -n 1
systemd-analyze security --threshold=10 airgapd.service > /dev/null
airgapd --version
man -w airgapd 2> /dev/null || ls /usr/share/man/man1/airgapd.1*

cp /root/demo.tar $bundle
systemctl start containerd
airgapd wait --bundle demo.tar --timeout 60s
airgapd status
airgapd doctor
ctr -n k8s.io images ls | grep registry.example/demo/hello:1.0
ctr -n k8s.io images check | grep 'registry.example/demo/hello:1.0 .*complete'

# What others may see, and what they may not.
setpriv --reuid=65534 --regid=65534 --clear-groups grep 'airgapd_bundles{state="done"} 1' /run/airgapd/airgapd.prom
! setpriv --reuid=65534 --regid=65534 --clear-groups airgapd wait --timeout 0s
! setpriv --reuid=65534 --regid=65534 --clear-groups cat /var/lib/airgapd/state.json

# Deleted, and back, under all the restrictions of the unit.
ctr -n k8s.io images rm registry.example/demo/hello:1.0
for i in $(seq 50); do ctr -n k8s.io images ls -q | grep -qx registry.example/demo/hello:1.0 && break; sleep 0.2; done
ctr -n k8s.io images ls -q | grep -x registry.example/demo/hello:1.0

# The journal explains.
journalctl -u airgapd -x --no-pager > /root/journal
grep 'bundle imported' /root/journal
grep -A3 'bundle imported' /root/journal | grep -- '-- '

# Read again, and a mistake does not loop.
echo 'exclude: ["registry.example/other/*"]' >> /etc/airgapd/config.yaml
sed -i '/^exclude: \[\]/d' /etc/airgapd/config.yaml
systemctl reload airgapd
for i in $(seq 50); do journalctl -u airgapd --no-pager | grep -q 'exclude' && break; sleep 0.2; done
journalctl -u airgapd --no-pager | grep exclude
cp /etc/airgapd/config.yaml /root/config.yaml
echo 'resync: soon' > /etc/airgapd/config.yaml
! systemctl restart airgapd
test "$(systemctl show -P ExecMainStatus airgapd)" = 2
sleep 5
test "$(systemctl show -P NRestarts airgapd)" = 0
cp /root/config.yaml /etc/airgapd/config.yaml
systemctl restart airgapd
airgapd wait --timeout 60s

# A stop needs no force.
systemctl stop airgapd
test "$(systemctl show -P Result airgapd)" = success
systemctl start airgapd

# And away with it.
systemctl disable --now airgapd
airgapd release --all
! ctr -n k8s.io images ls | grep io.airgapd
apt-get purge -y airgapd
find / -xdev \( -path /proc -o -path /sys -o -path /root -o -path /var/log/journal -o -path /var/cache/apt \
    -o -path /var/lib/apt -o -path /var/log \) -prune -o -name '*airgapd*' -print > /root/left
cat /root/left
! grep . /root/left
test -e $bundle
echo PASSED
