"""The machines that the tests of images and of the local engine work on."""

from tests.machines import busybox, label

__all__ = ["busybox", "label"]
