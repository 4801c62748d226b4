# Makes the machine look like a node inside this mount namespace. The folders that airgapd and its
# documents name are new and empty, and /usr/bin can be written. The machine itself does not change.
#
# Arguments: the program, containerd's socket, the folder of the stand-ins, a folder for written
# files, ctr, and flags for `ctr run`.
set -eu
program=$1 socket=$2 stand_ins=$3 keep=$4 ctr=$5
shift 5

mount -t tmpfs tmpfs /run
mkdir /run/programs /run/containerd
mount --bind /usr/bin /run/programs
PATH=/run/programs:$PATH
mount -t tmpfs tmpfs /usr/bin
ln -s /run/programs/* /usr/bin/

mkdir -p "$keep/etc/systemd/system" "$keep/var" "$keep/home"
cp /etc/passwd /etc/group "$keep/etc/"
if [ -e /etc/ld.so.cache ]; then cp /etc/ld.so.cache "$keep/etc/"; fi
mount --bind "$keep/etc" /etc
mount --bind "$keep/var" /var/lib
mount -t tmpfs tmpfs /usr/share/doc
mkdir -p /run/mnt/usb
mount --bind /run/mnt /mnt

# A plain containerd: a program, and a socket at the usual path.
ln -s "$socket" /run/containerd/containerd.sock
cat > /run/ctr << END
#!/bin/sh
for argument; do
    shift
    set -- "\$@" "\$argument"
    if [ "\$argument" = run ]; then set -- "\$@" $*; fi
done
exec "$ctr" --address "$socket" "\$@"
END
install -m 0755 /run/ctr /usr/bin/ctr
install -m 0755 /dev/null /usr/bin/containerd
# A command of the test may install the program into /usr/bin. Until then the PATH finds it here.
mkdir /run/program
ln -s "$program" /run/program/airgapd
for stand_in in "$stand_ins"/*; do install -m 0755 "$stand_in" /usr/bin/; done
echo ready
exec sleep infinity
