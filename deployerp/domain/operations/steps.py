"""Steps of operations: their titles, which the API, the command line and Temporal's UI show, and their runs.

It imports nothing of ours, so that workflows can use it in the sandbox.
"""

from dataclasses import dataclass

# By the name of the activity.
STEPS: dict[str, str] = {
    # servers
    "prepare_keys": "Generate the server's SSH keys",
    "create_node": "Create the machine",
    "start_node": "Start the machine",
    "stop_node": "Stop the machine",
    "reboot_node": "Restart the machine",
    "wait_for_node": "Wait for the machine",
    "wait_for_ssh": "Wait for SSH with the pinned host key",
    "prepare_host": "Prepare the machine",
    "check_engine": "Check the Docker engine",
    "start_caddy": "Start Caddy",
    "destroy_node": "Destroy the machine",
    "stop_instances": "Stop the instances",
    "start_stopped_instances": "Start the stopped instances",
    "start_instances": "Start the instances",
    # instances
    "pull_images": "Pull images",
    "prepare_database": "Prepare a database",
    "create_network": "Create the network",
    "create_volumes": "Create the volumes",
    "start_postgres": "Start PostgreSQL",
    "personalise_database": "Set database secrets",
    "start_odoo": "Start Odoo",
    "wait_for_odoo": "Wait for Odoo",
    "create_route": "Create the route",
    "check_login": "Check the login page",
    "stop_containers": "Stop the containers",
    "remove_instance": "Remove the route, containers, network and volumes",
}


@dataclass(frozen=True)
class StepRun:
    """One run of a step in an operation; an operation may run a step more than once."""

    operation_id: str
    name: str
    # From 1. Attempts of one run share its record.
    number: int = 1

    @property
    def activity_id(self) -> str:
        """What Temporal knows the run by: `start_odoo`, and `start_odoo.2` for the second run."""
        return self.name if self.number == 1 else f"{self.name}.{self.number}"

    @classmethod
    def of_activity(cls, operation_id: str, name: str, activity_id: str) -> "StepRun":
        """The run that an activity of this name and id is."""
        _, _, number = activity_id.partition(f"{name}.")
        return cls(operation_id, name, int(number) if number.isdigit() else 1)
