#!/bin/sh
# First process of a node: what firmware, cloud-init and an init system do for a virtual machine.
set -eu
export PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin

user_data=/var/lib/deployerp/user-data
dockerd_pid=
sshd_pid=

say() { echo "node: $*" >&2; }

# The inner engine sets sysctls such as ip_forward; without --privileged the engine mounts this read-only.
open_sysctls() {
    [ -w /proc/sys/net/ipv4/ip_forward ] && return
    mount -o remount,rw /proc/sys || say "/proc/sys stays read-only: the Docker engine may not start"
}

# Inner containers go below the node's own cgroup, so that the node's size bounds them too.
nest_cgroups() {
    if [ -f /sys/fs/cgroup/cgroup.controllers ]; then
        # cgroup v2 lets a group hold either processes or groups with controllers, never both.
        mkdir -p /sys/fs/cgroup/init
        xargs -rn1 </sys/fs/cgroup/cgroup.procs >/sys/fs/cgroup/init/cgroup.procs || true
        sed -e 's/ / +/g' -e 's/^/+/' </sys/fs/cgroup/cgroup.controllers >/sys/fs/cgroup/cgroup.subtree_control
        cgroup_parent=/docker
    else
        cgroup_parent=$(sed -n 's/^[0-9]*:memory://p' /proc/self/cgroup)/nested
    fi
}

# At each boot, not only the first: the firewall lives in a network namespace that a restart renews.
run_user_data() {
    [ -f "$user_data" ] || { say "no user data: nobody can log in"; return; }
    sh "$user_data" || say "user data failed with exit status $?"
}

shut_down() {
    trap '' TERM INT
    # dockerd stops its containers first and waits for them as daemon.json says.
    [ -z "$dockerd_pid" ] || kill -TERM "$dockerd_pid" 2>/dev/null || true
    [ -z "$dockerd_pid" ] || wait "$dockerd_pid" || true
    [ -z "$sshd_pid" ] || kill -TERM "$sshd_pid" 2>/dev/null || true
    exit 0
}

trap shut_down TERM INT
# A restart keeps files: what the last boot left would stop the engine from starting.
rm -rf /run/docker /run/docker.pid /run/docker.sock /run/containerd /run/sshd.pid
mkdir -p /run/sshd
open_sysctls
nest_cgroups
run_user_data

dockerd --log-level warn --storage-driver overlay2 --cgroup-parent "$cgroup_parent" &
dockerd_pid=$!
/usr/sbin/sshd -D -e &
sshd_pid=$!

# A node without its engine is of no use: ending lets the restart policy boot it again.
wait "$dockerd_pid" || say "the Docker engine ended with exit status $?"
dockerd_pid=
[ ! -e /proc/"$sshd_pid" ] || kill -TERM "$sshd_pid"
exit 1
