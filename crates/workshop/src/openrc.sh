#!/bin/sh
# Runs as root inside a fresh Debian with OpenRC. The script types the commands of docs/install.md
# like an operator. /root has the tarball and a bundle. The last line of the output is PASSED, or
# the output ends with the step that failed.
set -eux
images=/var/lib/k0s/images
hello=registry.example/demo/hello:1.0
log=/var/log/airgapd.log

# Tries a command for up to 40 seconds.
eventually() {
    for _ in $(seq 200); do "$@" && return; sleep 0.2; done
    "$@"
}
# Runs a command that must fail. `set -e` does not stop a script at a command after an exclamation
# mark.
never() { if "$@"; then exit 1; fi; }
daemon() { pgrep -x airgapd; }
in_log() { grep -q "$1" $log; }
in_containerd() { ctr -n k8s.io images ls -q | grep -qx "$1"; }
is_another() { test "$(daemon)" != "$1" && airgapd --quiet wait --timeout 5s; }
# Runs a command that must end within 30 seconds.
soon() { timeout 30 "$@"; }

openrc --version
mkdir -p /run/openrc
touch /run/openrc/softlevel

# 1. The tarball is installed as the document says.
mkdir /root/airgapd
tar -xzf /root/airgapd.tar.gz --strip-components=1 -C /root/airgapd
cd /root/airgapd
install -m 0755 bin/airgapd /usr/bin/airgapd
install -D -m 0644 config/config.yaml /etc/airgapd/config.yaml
install -m 0755 openrc/airgapd.initd /etc/init.d/airgapd
install -D -m 0644 openrc/airgapd.confd /etc/conf.d/airgapd
install -D -m 0644 openrc/airgapd.logrotate /etc/logrotate.d/airgapd
install -d -m 0755 $images
rc-update add airgapd default
rc-update show default | grep airgapd
# Alpine's shell and timeout are those of busybox. This system has a shell of its own.
sh -n /etc/init.d/airgapd

# 2. The service starts without containerd, with the other services of its runlevel.
soon openrc default
rc-service airgapd status
test "$(stat -c %a /var/lib/airgapd)" = 700
test "$(stat -c %a /run/airgapd)" = 755
never airgapd wait --timeout 0s
eventually in_log 'no containerd on'
test "$(ps -o ni= -p "$(daemon)")" -eq 5

# 3. A bundle is imported as soon as containerd runs.
cp /root/demo.tar $images
containerd > /root/containerd.log 2>&1 &
containerd=$!
airgapd wait --bundle demo.tar --timeout 60s
airgapd status
in_containerd $hello

# 4. The daemon is killed, and starts again.
before=$(daemon)
kill -9 "$before"
eventually is_another "$before"
rc-service airgapd status
ctr -n k8s.io images rm $hello
eventually in_containerd $hello

# The log is rotated under the running daemon, which goes on at the start of the file.
logrotate --force /etc/logrotate.d/airgapd
zcat $log.1.gz | grep -q 'no containerd on'
never in_log 'no containerd on'
ctr -n k8s.io images rm $hello
eventually test -s $log
test "$(tr -d '\0' < $log | wc -c)" -eq "$(wc -c < $log)"

# 5. The daemon reads its configuration again. A mistake changes nothing.
before=$(daemon)
cp /etc/airgapd/config.yaml /root/config.yaml
sed -i 's|^exclude: \[\]|exclude: ["registry.example/other/*"]|' /etc/airgapd/config.yaml
rc-service airgapd reload
eventually in_log exclude
echo 'resync: soon' >> /etc/airgapd/config.yaml
never rc-service airgapd reload
never soon rc-service airgapd restart
test "$(daemon)" = "$before"
cp /root/config.yaml /etc/airgapd/config.yaml
soon rc-service airgapd restart
airgapd wait --timeout 60s

# 6. The service does not start with a mistake in its configuration, and does not hold up the boot.
soon rc-service airgapd stop
never rc-service airgapd status
never daemon
never test -e /run/airgapd/airgapd.prom
echo 'resync: soon' >> /etc/airgapd/config.yaml
never soon rc-service airgapd start
never daemon
cp /root/config.yaml /etc/airgapd/config.yaml

# 7. A daemon that hangs is restarted. A daemon that works is not.
printf 'healthcheck_timer=2\nretry=TERM/1/KILL/5\n' > /etc/conf.d/airgapd
soon rc-service airgapd start
before=$(daemon)
sleep 7
test "$(daemon)" = "$before"
kill -STOP "$before"
eventually is_another "$before"
airgapd wait --timeout 60s

# 8. The service is removed from the node.
soon rc-service airgapd stop
airgapd release --all
ctr -n k8s.io images ls > /root/records
never grep -F io.airgapd /root/records
rc-update del airgapd default
kill "$containerd"
echo PASSED
