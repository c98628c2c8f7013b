#!/bin/sh
# Makes a Debian or Ubuntu machine a deployERP server. Safe to run again: a second run changes nothing.
# Everything is in functions, so that a transfer cut short runs nothing.
set -eu
umask 077
export PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin
export DEBIAN_FRONTEND=noninteractive

revision=@@REVISION@@
state=/var/lib/deployerp

say() { echo "deployerp: $*"; }
has() { command -v "$1" >/dev/null 2>&1; }
has_systemd() { [ -d /run/systemd/system ]; }

# put PATH MODE: writes standard input there when it differs; sets $changed to yes or no.
put() {
    changed=no
    temporary=$(mktemp "$1.XXXXXX")
    cat >"$temporary"
    if cmp -s "$temporary" "$1"; then
        rm "$temporary"
    else
        chmod "$2" "$temporary"
        mv "$temporary" "$1"
        changed=yes
        say "wrote $1"
    fi
}

write_keys() {
    put /etc/ssh/ssh_host_ed25519_key 600 <<'KEY'
@@HOST_PRIVATE_KEY@@
KEY
    key_changed=$changed
    put /etc/ssh/ssh_host_ed25519_key.pub 644 <<'KEY'
@@HOST_PUBLIC_KEY@@
KEY
    mkdir -p -m 700 /root/.ssh
    put /root/.ssh/authorized_keys 600 <<'KEY'
@@AUTHORIZED_KEY@@
KEY
    mkdir -p -m 755 /etc/ssh/sshd_config.d
    # 00: sshd takes the first value that it reads, and images bring files of their own.
    put /etc/ssh/sshd_config.d/00-deployerp.conf 644 <<'CONF'
HostKey /etc/ssh/ssh_host_ed25519_key
PermitRootLogin prohibit-password
PasswordAuthentication no
KbdInteractiveAuthentication no
CONF
    if [ "$key_changed$changed" != nono ]; then reload_sshd; fi
    # Some clouds expire root's password, and sshd then refuses to run anything, also for a key.
    if grep -q '^root:[^:]*:0:' /etc/shadow; then chage -d "$(date +%F)" root; fi
}

reload_sshd() {
    if has_systemd; then
        systemctl try-reload-or-restart ssh.service
    elif [ -s /run/sshd.pid ] && kill -0 "$(cat /run/sshd.pid)" 2>/dev/null; then
        kill -HUP "$(cat /run/sshd.pid)"
    fi
}

# Before the engine is installed, so that its first start already reads it.
write_engine_settings() {
    mkdir -p -m 755 /etc/docker
    # Containers outlive a restart of dockerd only where something other than the node's boot starts it.
    if has_systemd; then live_restore=true; else live_restore=false; fi
    put /etc/docker/daemon.json 644 <<CONF
{
  "default-address-pools": [{"base": "@@ADDRESS_POOL@@", "size": @@SUBNET_SIZE@@}],
  "live-restore": $live_restore,
  "log-driver": "json-file",
  "log-opts": {"max-size": "10m", "max-file": "3"},
  "shutdown-timeout": 45
}
CONF
    engine_changed=$changed
}

install_packages() {
    missing=
    has dockerd || missing="docker.io"
    has nft || missing="$missing nftables"
    [ -n "$missing" ] || return 0
    if ! has apt-get; then
        say "cannot install $missing: only Debian and Ubuntu are supported" >&2
        exit 1
    fi
    say "installing $missing"
    # A new machine often upgrades itself at first boot, and holds the lock while it does.
    apt-get -o DPkg::Lock::Timeout=300 -q update
    # shellcheck disable=SC2086 # a list of package names
    apt-get -o DPkg::Lock::Timeout=300 -q install -y $missing
    engine_changed=no
}

apply_engine_settings() {
    if has_systemd; then
        # Moves a running engine to its new settings, and starts one that an image left disabled.
        if [ "$engine_changed" = yes ]; then systemctl restart docker.service; fi
        systemctl is-active -q docker.service || systemctl enable -q --now docker.service
    elif [ "$engine_changed" = yes ] && [ -S /run/docker.sock ]; then
        say "the Docker engine takes its new settings at the next boot"
    fi
}

make_directories() {
    mkdir -p -m 755 "$state"
    mkdir -p -m 700 "$state/caddy"
}

# A cloud's metadata service gives user data, which hold this machine's keys, to whoever asks.
# Docker keeps the chain DOCKER-USER as it finds it, and asks it first about what containers send out.
keep_containers_from_metadata() {
    mkdir -p -m 755 /etc/deployerp
    put /etc/deployerp/block-metadata 755 <<'PROGRAM'
#!/bin/sh
# Keeps containers from link-local addresses, and from the metadata service of EC2 over IPv6.

block() {
    "$1" -w -n -L DOCKER-USER >/dev/null 2>&1 || "$1" -w -N DOCKER-USER || return 1
    for protocol in tcp udp; do
        # Some clouds have the resolver of their machines at the same address.
        rule="DOCKER-USER -d $2 -p $protocol ! --dport 53 -j DROP"
        # shellcheck disable=SC2086 # words of a rule
        "$1" -w -C $rule 2>/dev/null || "$1" -w -I $rule || return 1
    done
}

if ! block iptables 169.254.0.0/16; then
    echo "deployerp: cannot keep containers from the cloud's metadata service: iptables failed" >&2
    exit 1
fi
block ip6tables fd00:ec2::254 2>/dev/null || echo "deployerp: no rules for IPv6: ip6tables does not work here"
PROGRAM
    /etc/deployerp/block-metadata
    # Without systemd this script runs at each boot, before the engine.
    if has_systemd; then block_metadata_at_each_start; fi
}

block_metadata_at_each_start() {
    mkdir -p -m 755 /etc/systemd/system/docker.service.d
    put /etc/systemd/system/docker.service.d/deployerp.conf 644 <<'UNIT'
[Service]
ExecStartPre=/etc/deployerp/block-metadata
UNIT
    if [ "$changed" = yes ]; then systemctl daemon-reload; fi
}

# Only what comes to the machine itself: published ports of containers are forwarded, and Docker's own.
write_firewall() {
    mkdir -p -m 755 /etc/deployerp
    put /etc/deployerp/firewall.nft 644 <<'RULES'
table inet deployerp
delete table inet deployerp
table inet deployerp {
    chain input {
        type filter hook input priority filter; policy drop;
        ct state established,related accept
        iifname "lo" accept
        iifname "docker0" accept
        iifname "br-*" accept
        meta l4proto { icmp, ipv6-icmp } accept
        udp dport { 68, 546 } accept comment "DHCP"
        tcp dport { 22, 80, 443 } accept
        udp dport 443 accept
    }
}
RULES
    rules_changed=$changed
    if ! nft list tables >/dev/null 2>&1; then
        say "no firewall: nf_tables does not answer (not in this kernel, or not allowed)"
        return 0
    fi
    if [ "$rules_changed" = yes ] || ! nft list table inet deployerp >/dev/null 2>&1; then
        nft -f /etc/deployerp/firewall.nft
        say "firewall: 22, 80 and 443 are open"
    fi
    if has_systemd; then keep_firewall; fi
}

# Not nftables.service: stopping that one flushes Docker's rules too.
keep_firewall() {
    put /etc/systemd/system/deployerp-firewall.service 644 <<'UNIT'
[Unit]
Description=deployERP firewall
DefaultDependencies=no
After=local-fs.target
Before=network-pre.target
Wants=network-pre.target

[Service]
Type=oneshot
RemainAfterExit=yes
ExecStart=/usr/sbin/nft -f /etc/deployerp/firewall.nft

[Install]
WantedBy=multi-user.target
UNIT
    if [ "$changed" = yes ]; then
        systemctl daemon-reload
        systemctl enable -q deployerp-firewall.service
    fi
}

main() {
    if [ "$(id -u)" != 0 ]; then
        say "must run as root" >&2
        exit 1
    fi
    make_directories
    write_keys
    write_engine_settings
    install_packages
    apply_engine_settings
    keep_containers_from_metadata
    write_firewall
    put "$state/ready" 644 <<MARKER
$revision
MARKER
}

# Standard input is this very script when it comes over SSH: nothing in it may read on.
main </dev/null
