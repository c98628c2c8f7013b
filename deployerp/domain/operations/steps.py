"""The steps of operations in words, for people: the API, the command line and Temporal's UI show these.

Keys are the names of activities. It imports nothing, so that workflows can use it in the sandbox.
"""

STEPS: dict[str, str] = {
    # servers
    "prepare_keys": "Make the server's own SSH keys",
    "create_node": "Create the machine",
    "start_node": "Start the machine",
    "stop_node": "Stop the machine",
    "reboot_node": "Restart the machine",
    "wait_for_node": "Wait for the machine to run",
    "wait_for_ssh": "Wait for SSH with the pinned host key",
    "prepare_host": "Prepare the machine",
    "check_engine": "Check the Docker engine",
    "start_caddy": "Start Caddy",
    "destroy_node": "Destroy the machine",
    "stop_instances": "Stop the instances",
    "start_stopped_instances": "Start the instances again",
    "start_instances": "Start the instances that are to run",
    # instances
    "pull_images": "Bring the images to the server",
    "prepare_database": "Prepare a database to copy",
    "create_network": "Create the network",
    "create_volumes": "Create the volumes",
    "start_postgres": "Start PostgreSQL",
    "personalise_database": "Give the database its own secrets",
    "start_odoo": "Start Odoo",
    "wait_for_odoo": "Wait for Odoo to be healthy",
    "create_route": "Route the host name",
    "check_login": "Open the login page through the proxy",
    "stop_containers": "Stop the containers",
    "remove_instance": "Remove route, containers, network and volumes",
}
