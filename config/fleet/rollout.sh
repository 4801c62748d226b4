#!/bin/sh
# Waits until a bundle is in place on many nodes, with the images that a node requires. Prints a
# line for each other node: its name, the cause in one word, and the remedy.
#
#     sh rollout.sh [-t TIMEOUT] [-n NUMBER] [-r COMMAND] BUNDLE < NODES
#
# BUNDLE   path of the bundle on each node, without spaces
# NODES    a line with the name of each node
# -t       longest wait on a node, 30m by default
# -n       number of nodes at a time, 20 by default
# -r       command that runs a command line on a node. It gets the node's name and the command line.
#          Its exit status is that of the command line, and 255 if it cannot reach the node.
#          By default ssh, which gives up a node that is silent for a minute
#
# airgapd needs root on the nodes. If ssh logs in as another user, write root@NAME into NODES.
#
# Exit status: 0 if all nodes are ready, 1 if a node is not, 2 for a wrong command line.
#
# The script reads exit codes only, and none of the texts that airgapd prints. `wait --now` is
# GET /ready as an exit code.

set -u

timeout=30m
at_a_time=20
reach='ssh -n -o BatchMode=yes -o ConnectTimeout=15 -o ServerAliveInterval=15 -o ServerAliveCountMax=4'

usage() {
    echo 'usage: sh rollout.sh [-t TIMEOUT] [-n NUMBER] [-r COMMAND] BUNDLE < NODES' >&2
    exit 2
}

while getopts t:n:r: option; do
    case $option in
    t) timeout=$OPTARG ;;
    n) at_a_time=$OPTARG ;;
    r) reach=$OPTARG ;;
    *) usage ;;
    esac
done
shift $((OPTIND - 1))
[ $# -eq 1 ] || usage
case $at_a_time in
'' | 0* | *[!0-9]*) usage ;;
esac
bundle=$1

# Runs a command on a node, and returns its exit status.
on() {
    node=$1
    shift
    # The command has several words.
    # shellcheck disable=SC2086
    $reach "$node" "$@" </dev/null >/dev/null 2>&1
}

# Prints the line of a node.
tell() {
    printf '%s\t%s\t%s\n' "$1" "$2" "$3"
}

# Judges the bundle on a node as the daemon does, and writes nothing. The arguments after the node
# are settings for it.
judge() {
    name=$1
    shift
    on "$name" "$@" airgapd import --dry-run "$bundle"
}

# Tells why a bundle did not bring its images. $2 is the exit status of the wait.
diagnose() {
    on "$1" airgapd inspect --verify "$bundle"
    case $? in
    0) ;;
    1 | 2) tell "$1" unreadable 'check the path of the bundle' && return ;;
    5) tell "$1" damaged 'copy the bundle again' && return ;;
    *) tell "$1" unreachable 'check the connection to the node' && return ;;
    esac
    if judge "$1"; then
        case $2 in
        4) tell "$1" missing 'bring the missing images: airgapd status names them' ;;
        6) tell "$1" late 'repeat with a longer timeout' ;;
        *) tell "$1" failed 'airgapd status names the reason' ;;
        esac
    elif judge "$1" env AIRGAPD_PLATFORMS=all; then
        tell "$1" platform 'bring the bundle for the platform of this node'
    elif judge "$1" env AIRGAPD_MIN_FREE=0; then
        tell "$1" space 'free space on the disk of containerd'
    elif judge "$1" env AIRGAPD_CHECKSUMS=off AIRGAPD_SIGNATURES=off; then
        tell "$1" refused 'bring the checksum or signature of the bundle, too'
    else
        tell "$1" failed 'airgapd status names the reason'
    fi
}

# Waits for a node.
check() {
    on "$1" airgapd wait --required --bundle "$bundle" --timeout "$timeout"
    code=$?
    case $code in
    0 | 1)
        # GET /ready has the last word: the images may have gone again. On a node that requires no
        # images, the wait ends with 1 as soon as the bundle is in place.
        if on "$1" airgapd wait --now --bundle "$bundle"; then
            tell "$1" ready ''
        elif [ "$code" -eq 1 ]; then
            diagnose "$1" "$code"
        else
            tell "$1" failed 'airgapd wait --now --bundle names the reason'
        fi
        ;;
    4 | 6) diagnose "$1" "$code" ;;
    2) tell "$1" configuration 'correct it: airgapd config names the mistake' ;;
    3) tell "$1" containerd 'start containerd' ;;
    7) tell "$1" daemon 'start airgapd' ;;
    *) tell "$1" unreachable 'check the connection to the node' ;;
    esac
}

# Waits for several nodes at a time. $1 has a line for each node.
check_all() {
    running=0
    while read -r name; do
        [ -n "$name" ] || continue
        check "$name" &
        running=$((running + 1))
        if [ "$running" -ge "$at_a_time" ]; then
            wait
            running=0
        fi
    done <<NODES
$1
NODES
    wait
}

nodes=$(grep '[^[:space:]]')
if [ -z "$nodes" ]; then
    echo 'rollout.sh: there are no nodes on standard input' >&2
    exit 2
fi
results=$(check_all "$nodes")
ready=$(printf '\tready\t$')
printf '%s\n' "$results" | grep -v "$ready" | grep . | sort
# A check that was killed has no line, and its node does not count as ready.
asked=$(printf '%s\n' "$nodes" | grep -c .)
good=$(printf '%s\n' "$results" | grep -c "$ready")
[ "$good" -eq "$asked" ] && exit 0
told=$(printf '%s\n' "$results" | grep -c .)
[ "$told" -eq "$asked" ] || echo "rollout.sh: $told of $asked nodes have a result" >&2
exit 1
