"""The titles of steps, which the API, the command line and Temporal's UI show.

Keys are the names of activities. It imports nothing, so that workflows can use it in the sandbox.
"""

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
