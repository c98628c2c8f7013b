"""A cloud in memory, with the promises that `Cloud` makes and no others."""

import dataclasses
from collections.abc import Callable, Mapping

from deployerp.core.errors import ProviderRefused
from deployerp.drivers.clouds.cloud import Cloud, Image, Location, Node, NodeSpec, NodeState, Size

SIZES = [Size("small", "Small", 1, 2_048, 20, 0.01), Size("large", "Large", 4, 8_192, 80, 0.04)]
IMAGES = [Image("debian-13", "Debian 13")]
LOCATIONS = [Location("here", "Here", "BE")]


class FakeCloud:
    """`before_call` gets the name of each call first, and may raise to inject a fault."""

    def __init__(self, before_call: Callable[[str], None] = lambda call: None) -> None:
        self.nodes: dict[str, Node] = {}
        self.specs: dict[str, NodeSpec] = {}
        self.calls: list[str] = []
        self.before_call = before_call

    async def find_nodes(self, tags: Mapping[str, str]) -> list[Node]:
        self._called("find_nodes")
        return [node for node in self.nodes.values() if tags.items() <= node.tags.items()]

    async def get_node(self, node_id: str) -> Node | None:
        self._called("get_node")
        return self.nodes.get(node_id)

    async def create_node(self, spec: NodeSpec) -> Node:
        self._called("create_node")
        if spec.size not in {size.id for size in SIZES}:
            raise ProviderRefused(f"There is no size {spec.size!r}.")
        for node_id, created in self.specs.items():
            if created.client_token == spec.client_token and node_id in self.nodes:
                return self.nodes[node_id]
        node = Node(f"node-{len(self.specs) + 1}", spec.name, "running", "192.0.2.1", tags=dict(spec.tags))
        self.nodes[node.id] = node
        self.specs[node.id] = spec
        return node

    async def destroy_node(self, node_id: str) -> None:
        self._called("destroy_node")
        self.nodes.pop(node_id, None)

    async def start_node(self, node_id: str) -> None:
        self._called("start_node")
        self._move(node_id, "running")

    async def stop_node(self, node_id: str) -> None:
        self._called("stop_node")
        self._move(node_id, "stopped")

    async def reboot_node(self, node_id: str) -> None:
        self._called("reboot_node")
        self._move(node_id, "running")

    async def list_sizes(self) -> list[Size]:
        return list(SIZES)

    async def list_images(self) -> list[Image]:
        return list(IMAGES)

    async def list_locations(self) -> list[Location]:
        return list(LOCATIONS)

    def _called(self, call: str) -> None:
        self.calls.append(call)
        self.before_call(call)

    def _move(self, node_id: str, state: NodeState) -> None:
        if node_id not in self.nodes:
            raise ProviderRefused(f"There is no node {node_id!r}.")
        self.nodes[node_id] = dataclasses.replace(self.nodes[node_id], state=state)


class FakeClouds:
    """Opens the same cloud for every kind and credentials."""

    def __init__(self, cloud: FakeCloud | None = None) -> None:
        self.cloud = cloud or FakeCloud()

    def open(self, kind: str, credentials: Mapping[str, str]) -> Cloud:
        return self.cloud
