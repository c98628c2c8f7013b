"""An open-source control plane for fleets of Odoo."""

from importlib.metadata import version

__version__ = version("deployerp")
