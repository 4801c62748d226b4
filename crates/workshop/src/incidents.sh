# Nine incidents on a node that runs under systemd. The script causes each incident, checks that
# every output reports it, and repairs it. This is part of packaged.sh: airgapd and containerd run,
# and demo.tar is in place.

# Prometheus asks the daemon's port and node_exporter each second. It has the rules of the package,
# with a second for each minute.
install -D -m 0644 $drop_ins/metrics.conf $own/metrics.conf
cp /etc/airgapd/config.yaml /root/config.before
sed -i 's/^metricsAddress: null/metricsAddress: 127.0.0.1:9799/' /etc/airgapd/config.yaml
systemctl daemon-reload
systemctl restart airgapd
textfiles=/var/lib/prometheus/node-exporter
ln -s /run/airgapd/airgapd.prom $textfiles
cat > /etc/default/prometheus-node-exporter <<OPTIONS
ARGS="--collector.disable-defaults --collector.textfile --collector.textfile.directory=$textfiles --collector.systemd \
    --collector.systemd.unit-include=airgapd.service"
OPTIONS
cat > /etc/prometheus/prometheus.yml <<'CONFIGURATION'
global: {scrape_interval: 1s, scrape_timeout: 1s, evaluation_interval: 1s}
rule_files: [rules.yaml]
scrape_configs:
  - {job_name: airgapd, static_configs: [{targets: ['127.0.0.1:9799']}]}
  - {job_name: node, static_configs: [{targets: ['127.0.0.1:9100']}]}
CONFIGURATION
sed -E 's/([0-9])m\>/\1s/g' /usr/share/doc/airgapd/prometheus-rules.yaml > /etc/prometheus/rules.yaml
systemctl restart prometheus-node-exporter prometheus

# Exactly these alerts have fired for four seconds, and no other is pending.
raised() {
    promtool query instant http://127.0.0.1:9090 'group by (alertname, alertstate) (max_over_time(ALERTS[4s]))' > /root/alerts
    wanted=
    for alert in "$@"; do
        wanted="$wanted{alertname=\"$alert\", alertstate=\"firing\"} "
    done
    test "$(sed -n 's/ =>.*//p' /root/alerts | sort | tr '\n' ' ')" = "$wanted"
}
# Compares every output with a verdict: the verdict with the cause of waiting, and the exit status
# of `airgapd status`. The alerts follow in the order of their names.
agree() {
    short=$1 code=$2
    shift 2
    says() { airgapd status > /root/said; is=$?; test $is = "$code" && grep -q "^verdict     $short\$" /root/said; }
    eventually says
    cat /root/said
    doctor=1
    if test "$code" = 0; then doctor=0; fi
    is=0
    airgapd doctor > /root/doctor || is=$?
    test $is = $doctor
    on_the_unit() { property StatusText | grep -q "^$short"; }
    eventually on_the_unit
    in_the_metrics() { grep -q "^airgapd_verdict{state=\"${short%% *}\"} 1\$" /run/airgapd/airgapd.prom; }
    eventually in_the_metrics
    in_journal "the node is $short"
    eventually raised "$@"
}
# Checks the exit status of a command.
ends_with() {
    code=$1 is=0
    shift
    "$@" || is=$?
    test $is = "$code"
}
agree healthy 0

# No bundle has an image that a pod needs.
printf 'registry.example/demo/missing:1\n' > /etc/airgapd/required.txt
cp /etc/airgapd/config.yaml /root/config.yaml
sed -i 's|^  images: \[\]|  images: [/etc/airgapd/required.txt]|' /etc/airgapd/config.yaml
systemctl restart airgapd
agree failed 1 AirgapdFailed
grep 'registry.example/demo/missing:1' /root/said
ends_with 1 airgapd wait --timeout 5s
ends_with 4 airgapd verify --images /etc/airgapd/required.txt
cp /root/config.yaml /etc/airgapd/config.yaml
rm /etc/airgapd/required.txt
systemctl restart airgapd
agree healthy 0

# A bundle is damaged.
head -c 20000 /root/demo.tar > $images/cut.tar
agree 'waiting for the end of an upload' 1
agree failed 1 AirgapdFailed
rm $images/cut.tar
agree healthy 0

# A bundle has a signature of a key that is not trusted.
install -d -m 0755 /etc/airgapd/keys.d
for key in release other; do
    openssl genpkey -algorithm EC -pkeyopt ec_paramgen_curve:P-256 -out /root/$key.pem
done
openssl pkey -in /root/release.pem -pubout -out /etc/airgapd/keys.d/release.pub
echo '*' > /etc/airgapd/keys.d/release.allow
sed -i 's/^signatures: off/signatures: if-present/' /etc/airgapd/config.yaml
systemctl restart airgapd
agree healthy 0
openssl dgst -sha256 -sign /root/other.pem -out $images/signed.tar.sig /root/demo.tar
cp /root/demo.tar $images/signed.tar
agree failed 1 AirgapdFailed AirgapdRefused
eventually in_journal 'no trusted key makes it valid'
openssl dgst -sha256 -sign /root/release.pem -out $images/signed.tar.sig /root/demo.tar
agree healthy 0
airgapd verify --require-signed --sandbox-image $hello $hello
rm $images/signed.tar $images/signed.tar.sig
cp /root/config.yaml /etc/airgapd/config.yaml
rm -r /etc/airgapd/keys.d
systemctl restart airgapd
agree healthy 0

# containerd dies, and a containerd with an empty root replaces it. The daemon restores the images.
systemctl stop containerd
agree 'waiting for containerd' 3 AirgapdContainerdDown AirgapdWaiting
ends_with 3 airgapd wait --timeout 2s
mount -t tmpfs -o size=60m tmpfs /var/lib/containerd
systemctl start containerd
airgapd wait --timeout 60s
in_containerd $hello
agree healthy 0

# The disk is full.
cp /root/wide.tar.zst $images
agree "waiting for room on containerd's disk" 1 AirgapdDiskFull AirgapdWaiting
ends_with 1 airgapd wait --timeout 2s
grep 'as soon as there is room' /root/said
mount -o remount,size=600m /var/lib/containerd
airgapd wait --timeout 60s
agree healthy 0
rm $images/wide.tar.zst
eventually in_journal 'the bundle is gone'

# The disk of the bundles is not mounted.
mv $images /var/lib/bundles.aside
mkdir $images
agree degraded 1 AirgapdDegraded AirgapdVanishedBundles
grep 'release --vanished' /root/said
in_containerd $hello
rmdir $images
mv /var/lib/bundles.aside $images
agree healthy 0

# The daemon refuses a configuration with a mistake.
echo 'resync: soon' >> /etc/airgapd/config.yaml
systemctl reload airgapd
eventually in_journal 'the new configuration was rejected'
cp /root/config.yaml /etc/airgapd/config.yaml
agree degraded 1 AirgapdDegraded AirgapdReloadRefused
systemctl reload airgapd
agree healthy 0

# Another program removes an image again and again.
comes_back() { for _ in $(seq 25); do in_containerd $hello && return; sleep 0.2; done; false; }
rounds=0
ctr -n k8s.io images rm $hello
while comes_back; do
    rounds=$((rounds + 1))
    test $rounds -lt 10
    ctr -n k8s.io images rm $hello
done
agree degraded 1 AirgapdDegraded
grep 'seems to remove it on purpose' /root/said
systemctl restart airgapd
airgapd wait --timeout 20s
agree healthy 0

# The daemon does not run.
systemctl stop airgapd
ends_with 1 airgapd status
airgapd status > /root/said || true
grep '^verdict     failed' /root/said
ends_with 1 airgapd doctor
ends_with 7 airgapd wait --timeout 2s
eventually raised AirgapdAbsent AirgapdNotRunning AirgapdSilent
systemctl start airgapd
agree healthy 0

# The rest of the script needs no Prometheus.
systemctl stop prometheus prometheus-node-exporter
rm $textfiles/airgapd.prom $own/metrics.conf
mv /root/config.before /root/config.yaml
cp /root/config.yaml /etc/airgapd/config.yaml
systemctl daemon-reload
systemctl restart airgapd
airgapd wait --timeout 60s
