"""The script itself; what it does to a machine is asked in test_cloud_contract.py."""

import gzip
import subprocess
from pathlib import Path

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from deployerp.drivers.server import user_data
from deployerp.drivers.server.host import generate_key_pair

OURS, THEIRS = generate_key_pair("client"), generate_key_pair("host")


def test_it_is_a_shell_script_with_nothing_left_to_fill_in() -> None:
    script = user_data.render(THEIRS.private, OURS.public)
    assert "@@" not in script
    subprocess.run(["sh", "-n"], input=script.encode(), check=True)
    assert all(line in script for line in THEIRS.private.strip().splitlines())


def test_the_same_keys_give_the_same_script_and_others_another() -> None:
    script = user_data.render(THEIRS.private, OURS.public)
    assert user_data.render(THEIRS.private, OURS.public) == script
    other = user_data.render(generate_key_pair("host").private, OURS.public)
    assert user_data.revision(other) != user_data.revision(script)


def test_only_the_key_of_an_authorized_line_is_kept() -> None:
    key = " ".join(OURS.public.split()[:2])
    assert f"\n{key}\nKEY\n" in user_data.render(THEIRS.private, f"{key} $(reboot)")


def test_it_fits_into_the_user_data_of_ec2() -> None:
    assert len(user_data.render(THEIRS.private, OURS.public)) < 16_384


@pytest.mark.parametrize(
    ("private", "public", "options"),
    [
        (THEIRS.private.replace("\n-----END", "\nKEY\nreboot\n-----END"), OURS.public, {}),
        ("reboot\n" + THEIRS.private, OURS.public, {}),
        (THEIRS.private, "ssh-ed25519 KEY\nreboot", {}),
        (THEIRS.private, OURS.public + "\nKEY\nreboot", {}),
        (THEIRS.private, OURS.public, {"address_pool": "10.0.0.0/8; reboot"}),
        (THEIRS.private, OURS.public, {"address_pool": "10.0.0.0/24", "subnet_size": 16}),
    ],
    # The keys are new in each process, and names made of them would differ between test workers.
    ids=["line in key", "text before key", "line in place of key", "line after key", "pool", "subnet size"],
)
def test_what_is_no_key_or_network_is_refused(private: str, public: str, options: dict[str, str]) -> None:
    with pytest.raises(ValueError):  # noqa: PT011 whatever the parser says
        user_data.render(private, public, **options)


@given(st.text())
def test_a_comment_never_reaches_the_script(comment: str) -> None:
    try:
        script = user_data.render(THEIRS.private, f"{OURS.public.split(' c')[0]} {comment}")
    except ValueError:
        return
    assert script == user_data.render(THEIRS.private, OURS.public)


def test_a_script_that_was_cut_short_does_nothing() -> None:
    script = user_data.render(THEIRS.private, OURS.public)
    cut = script[: script.rindex("main <")]
    ended = subprocess.run(["sh", "-s"], input=cut.encode(), check=True, capture_output=True)
    assert ended.stdout == ended.stderr == b""


def test_a_cloud_config_sets_the_keys_by_itself_and_runs_the_script() -> None:
    script = user_data.render(THEIRS.private, OURS.public)
    text = user_data.cloud_config(script)
    config = yaml.safe_load(text)
    assert text.startswith("#cloud-config\n")
    assert config["ssh_keys"]["ed25519_private"].strip() == THEIRS.private.strip()
    assert config["ssh_keys"]["ed25519_public"].split()[:2] == THEIRS.public.split()[:2]
    assert config["users"][1]["ssh_authorized_keys"][0].split()[:2] == OURS.public.split()[:2]
    assert config["write_files"][0]["content"] == script
    assert config["runcmd"] == [["sh", config["write_files"][0]["path"]]]
    assert len(gzip.compress(text.encode())) < 16_384


# A table of rules in a file, one a line, as far as the script uses them; `broken` refuses every change.
FAKE_IPTABLES = """#!/bin/sh
rules=$0.rules
shift
action=$1
shift
[ ! -e "$0.broken" ] || { echo "broken" >&2; exit 4; }
case $action in
    -n) grep -qx "chain $2" "$rules" ;;
    -N) echo "chain $1" >> "$rules" ;;
    -C) grep -qxF -e "$*" "$rules" ;;
    -I) echo "$*" >> "$rules" ;;
esac
"""
RULES = {
    "chain DOCKER-USER",
    "DOCKER-USER -d {} -p tcp ! --dport 53 -j DROP",
    "DOCKER-USER -d {} -p udp ! --dport 53 -j DROP",
}


class BlockMetadata:
    """The program of the script that keeps containers from the metadata service, with tables of its own."""

    def __init__(self, directory: Path, commands: list[str]) -> None:
        self.directory = directory
        script = user_data.render(THEIRS.private, OURS.public)
        self.program = script.partition("block-metadata 755 <<'PROGRAM'\n")[2].partition("PROGRAM\n")[0]
        for name in ("grep", *commands):
            command = directory / name
            if name == "grep":
                command.symlink_to("/bin/grep")
            else:
                command.write_text(FAKE_IPTABLES)
                command.chmod(0o755)

    def run(self) -> subprocess.CompletedProcess[str]:
        environment = {"PATH": str(self.directory)}
        return subprocess.run(
            ["/bin/sh"], input=self.program, env=environment, capture_output=True, text=True
        )

    def rules(self, command: str) -> list[str]:
        return (self.directory / f"{command}.rules").read_text().splitlines()


@pytest.mark.fault("3")
def test_the_rules_against_metadata_are_written_once(tmp_path: Path) -> None:
    block = BlockMetadata(tmp_path, ["iptables", "ip6tables"])
    for _ in range(2):
        ended = block.run()
        assert (ended.returncode, ended.stdout, ended.stderr) == (0, "", "")
    for command, address in (("iptables", "169.254.0.0/16"), ("ip6tables", "fd00:ec2::254")):
        assert sorted(block.rules(command)) == sorted(rule.format(address) for rule in RULES)


@pytest.mark.fault("3")
def test_a_machine_without_ip6tables_gets_the_rules_of_ipv4(tmp_path: Path) -> None:
    block = BlockMetadata(tmp_path, ["iptables"])
    ended = block.run()
    assert ended.returncode == 0
    assert "no rules for IPv6" in ended.stdout
    assert len(block.rules("iptables")) == 3


@pytest.mark.fault("3")
@pytest.mark.parametrize("commands", [["ip6tables"], ["iptables", "ip6tables"]], ids=["absent", "broken"])
def test_a_machine_whose_iptables_fails_says_so(tmp_path: Path, commands: list[str]) -> None:
    block = BlockMetadata(tmp_path, commands)
    (tmp_path / "iptables.broken").touch()
    ended = block.run()
    assert ended.returncode == 1
    assert "cannot keep containers from the cloud's metadata service" in ended.stderr
