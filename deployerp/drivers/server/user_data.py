"""The script that makes a fresh machine a server: run at first boot, and again over SSH."""

import hashlib
import ipaddress
import json
import re
from importlib import resources

from cryptography.hazmat.primitives.serialization import (
    Encoding,
    PublicFormat,
    load_ssh_private_key,
    load_ssh_public_key,
)

READY_MARKER = "/var/lib/deployerp/ready"
"""On the server: holds `revision(script)` of the last script that ran to its end."""

_OPENSSH_PRIVATE_KEY = re.compile(
    r"-----BEGIN OPENSSH PRIVATE KEY-----\n(?:[A-Za-z0-9+/=]+\n)+-----END OPENSSH PRIVATE KEY-----"
)
# The keys in the script, in the order in which it has them.
_HERE_DOCUMENTS = re.compile(r"<<'KEY'\n(.*?\n)KEY\n", re.DOTALL)
_SCRIPT_PATH = "/var/lib/deployerp/user-data"
_TEMPLATE = resources.files(__package__).joinpath("user_data.sh").read_text()


def render(
    host_private_key: str,
    authorized_key: str,
    *,
    address_pool: str = "10.201.0.0/16",
    subnet_size: int = 26,
) -> str:
    """A POSIX shell script, idempotent, to be run by root.

    `host_private_key` is an unencrypted Ed25519 key in OpenSSH format, `authorized_key` one public
    key line; Docker networks are cut from `address_pool` (CIDR) with prefix length `subnet_size`.
    The script holds the private key: treat it as a secret. Raises ValueError for a malformed argument.
    """
    private_pem, public_line = _host_key(host_private_key)
    pool = ipaddress.ip_network(address_pool)
    if not pool.prefixlen <= subnet_size <= pool.max_prefixlen - 2:
        raise ValueError(f"networks of /{subnet_size} do not fit into the address pool {pool}")
    # Every value is parsed and checked whole: nothing but keys and numbers reaches the shell.
    values = {
        "HOST_PRIVATE_KEY": private_pem,
        "HOST_PUBLIC_KEY": public_line,
        "AUTHORIZED_KEY": _public_line(authorized_key),
        "ADDRESS_POOL": str(pool),
        "SUBNET_SIZE": str(subnet_size),
    }
    script = _TEMPLATE
    for name, value in values.items():
        script = script.replace(f"@@{name}@@", value)
    return script.replace("@@REVISION@@", hashlib.sha256(script.encode()).hexdigest())


def cloud_config(script: str) -> str:
    """The script of `render` as a cloud-config, for machines that boot with cloud-init.

    It sets the keys before sshd starts (cloud-init's module `ssh` runs before it), where a script alone
    would come after: in between the machine would show a host key of its own, and be refused for it.
    """
    keys = dict(zip(("private", "public", "authorized"), _HERE_DOCUMENTS.findall(script), strict=True))
    config = {
        "disable_root": False,
        "ssh_deletekeys": True,
        "ssh_keys": {"ed25519_private": keys["private"], "ed25519_public": keys["public"].strip()},
        "users": ["default", {"name": "root", "ssh_authorized_keys": [keys["authorized"].strip()]}],
        "write_files": [{"path": _SCRIPT_PATH, "permissions": "0700", "content": script}],
        "runcmd": [["sh", _SCRIPT_PATH]],
    }
    # JSON is YAML, and quotes by rules that everybody knows.
    return "#cloud-config\n" + json.dumps(config)


def revision(script: str) -> str:
    """The hash that a script of `render` leaves in READY_MARKER when it is done."""
    return next(line for line in script.splitlines() if line.startswith("revision=")).partition("=")[2]


def _host_key(text: str) -> tuple[str, str]:
    # Kept as it is: to serialise it again would add random bytes, and every rendering would differ.
    if not _OPENSSH_PRIVATE_KEY.fullmatch(text.strip()):
        raise ValueError("the host key must be in OpenSSH format")
    key = load_ssh_private_key(text.encode(), password=None)
    public = key.public_key().public_bytes(Encoding.OpenSSH, PublicFormat.OpenSSH).decode()
    if not public.startswith("ssh-ed25519 "):
        raise ValueError("the host key must be an Ed25519 key")
    return text.strip(), public


def _public_line(text: str) -> str:
    if len(text.strip().splitlines()) != 1:
        raise ValueError("the authorized key must be one line")
    key = load_ssh_public_key(text.strip().encode())
    return key.public_bytes(Encoding.OpenSSH, PublicFormat.OpenSSH).decode()
