"""The machines that the tests of the drivers work on."""

from tests.machines import busybox, label, sshd

__all__ = ["busybox", "label", "sshd"]
