#!/bin/sh
# Ends with 0 as soon as all required images of the node are in place (`require:` in airgapd's
# configuration). After ten minutes the script ends with 1. A bad file in the images folder that no
# required image needs does not change the result.
#
# Image-based systems go back to their old image after boots that fail this check:
#
# - systemd: install -D -m 0755 boot-check.sh /usr/libexec/airgapd-boot-check, and the unit
#   airgapd-boot-check.service.
# - greenboot: install -D -m 0755 boot-check.sh /etc/greenboot/check/required.d/40-airgapd.sh. No
#   unit is needed.
set -eu
patience=600

# Prints the seconds since the boot. The clock may jump while the system starts.
uptime() {
    read -r seconds _ </proc/uptime
    echo "${seconds%%.*}"
}

end=$(($(uptime) + patience))
# A daemon that does not answer makes a try 5 s long, so tries are no measure of time.
until said=$(airgapd wait --now --required 2>&1); do
    if [ "$(uptime)" -ge "$end" ]; then
        echo "airgapd: not all required images are in place: $said" >&2
        exit 1
    fi
    sleep 5
done
