"""Verbs on a Docker Engine, local or behind a forwarded socket: each looks first, so each can be repeated."""

import asyncio
import contextlib
import os
from collections.abc import Mapping, Sequence
from typing import Any

import aiodocker

from deployerp.core.errors import CommandFailed, EngineError, ImageUnavailable
from deployerp.drivers.engine.connection import (
    EngineConnection,
    doing,
    label_filter,
)
from deployerp.drivers.engine.containers import (
    OUTPUT_LIMIT,
    SPEC_LABEL,
    ContainerSpec,
    ContainerState,
    Executed,
    archive,
    check_environment,
)
from deployerp.drivers.engine.images import Images
from deployerp.drivers.engine.networks import NetworksAndVolumes, ignoring
from deployerp.drivers.engine.ports import port_in, port_in_use

_LOG_LINES = 1000
_REMOVAL_SECONDS = 30
_QUIET_SECONDS = 1


class Engine(Images, NetworksAndVolumes, EngineConnection):
    """One Docker Engine. Every verb raises EngineError, or EngineRefused where a retry cannot help."""

    @classmethod
    def local(cls) -> "Engine":
        """The engine beside the control plane: `DOCKER_HOST`, or the usual socket."""
        return cls(os.environ.get("DOCKER_HOST") or "unix:///var/run/docker.sock")

    # Containers

    async def ensure_container(self, spec: ContainerSpec) -> str:
        """Make the container be as the spec says, its files in place, not started; its id.

        One made of an equal spec is kept as it is, running or not, even if the image's name has moved on;
        another one of this name is stopped and replaced.
        Raises ImageUnavailable when the engine does not have the image.
        """
        found = await self._container(spec.name)
        if found is not None and found["Config"]["Labels"].get(SPEC_LABEL) == spec.fingerprint():
            return str(found["Id"])
        # Only a complete container gets the name: one whose making was cut short is never taken for it.
        draft = f"{spec.name}.draft"
        await self._remove(draft)
        created = await self._create(draft, spec)
        await self.remove_container(spec.name)
        with doing(f"name container {spec.name}"):
            await created.rename(spec.name)
        return str(created.id)

    async def start_container(self, name: str) -> None:
        """Start the container, at once if it waits to be restarted; running already is success.

        Raises PortInUse where something else has a port that it publishes.
        """
        found = await self._container(name)
        if found is not None and found["State"]["Restarting"]:
            # The engine waits longer after each exit, up to a minute, and would not start it earlier.
            await self.stop_container(name)
        try:
            with doing(f"start container {name}"):
                await self._docker.containers.container(name).start()
        except EngineError as error:
            if (port := port_in(error.message)) is None:
                raise
            raise port_in_use(name, port, await self._holder(port)) from error

    async def stop_container(self, name: str, timeout: int | None = None) -> None:
        """Stop the container, by force after `timeout` seconds (its own by default); absent is success."""
        with doing(f"stop container {name}"), ignoring(404):
            await self._docker.containers.container(name).stop(t=timeout)

    async def restart_container(self, name: str, timeout: int | None = None) -> None:
        """Stop, by force after `timeout` seconds (its own by default), and start again."""
        with doing(f"restart container {name}"):
            await self._docker.containers.container(name).restart(t=timeout)

    async def remove_container(self, name: str) -> None:
        """Stop the container as it wants to be stopped and remove it; absent is success."""
        await self.stop_container(name)
        await self._remove(name)

    async def find_containers(self, labels: Mapping[str, str | None]) -> list[ContainerState]:
        """The containers, running or not, with all these labels; None stands for any value."""
        with doing("list containers"):
            filters = aiodocker.utils.clean_filters(label_filter(labels))
            listed = await self._docker.containers.list(all=True, filters=filters)
        inspected = await asyncio.gather(*(self._container(container.id) for container in listed))
        states = [ContainerState.from_engine(one) for one in inspected if one is not None]
        return sorted(states, key=lambda state: state.name)

    async def logs(self, container: str, tail: int = 200) -> str:
        """The last lines that the container wrote, standard output and error as they came."""
        with doing(f"read the logs of {container}"):
            log = self._docker.containers.container(container).log
            return "".join(await log(stdout=True, stderr=True, tail=tail))

    # Programs

    async def execute(
        self,
        container: str,
        argv: Sequence[str],
        *,
        input: bytes | None = None,
        environment: Mapping[str, str] | None = None,
        user: str | None = None,
        timeout: float,
        check: bool = False,
    ) -> Executed:
        """Run a program in a running container, `input` as its whole standard input, for `timeout` seconds.

        A program that is not done in time goes on running: the engine knows no way to end it.
        Raises CommandFailed for a non-zero exit with `check`, EngineError when time is up.
        """
        check_environment(environment or {})
        doing_it = f"run {argv[0]} in {container}"
        with doing(doing_it):
            target = self._docker.containers.container(container)
            program = await target.exec(
                list(argv),
                stdin=input is not None,
                environment=environment,
                user=user or "",
            )
            try:
                async with asyncio.timeout(timeout):
                    stdout, stderr = await _converse(program, input)
                    exit_code = await _exit_code(program)
            except TimeoutError as error:
                raise EngineError(f"The Docker engine did not {doing_it} within {timeout:g} s.") from error
        ended = Executed(exit_code, stdout, stderr)
        if check:
            _check(ended, doing_it, environment or {})
        return ended

    async def run_once(self, spec: ContainerSpec, timeout: float) -> Executed:
        """Run a container to its end, take the last 1,000 lines it wrote and remove it.

        What a killed predecessor left under the name is removed first. Raises CommandFailed for a non-zero
        exit, with the end of the logs in `details.output`, and EngineError when `timeout` seconds are up.
        """
        await self._remove(spec.name)
        container = await self._create(spec.name, spec)
        try:
            ended = await self._run_to_end(container, spec, timeout)
        except BaseException:
            # The next try removes what this one cannot; its own error is the one to tell.
            with contextlib.suppress(EngineError):
                await self._remove(container.id)
            raise
        await self._remove(container.id)
        _check(ended, f"run {spec.name}", spec.environment)
        return ended

    async def copy_volume(
        self,
        source: str,
        target: str,
        image: str,
        labels: Mapping[str, str],
        timeout: float = 3600,
    ) -> None:
        """Make the volume `target` anew: a copy of `source`, owners and times too, by an image's `cp`."""
        spec = ContainerSpec(
            name=f"{target}.copy",
            image=image,
            labels=labels,
            entrypoint=["cp"],
            command=["-a", "/source/.", "/target/"],
            user="0",
            volumes={source: "/source", target: "/target"},
        )
        # A copy that broke off must not mix with this one, and its container holds on to the volume.
        await self._remove(spec.name)
        await self.remove_volume(target)
        await self.ensure_volume(target, labels)
        await self.run_once(spec, timeout)

    # Everything of a label

    async def remove_labelled(self, labels: Mapping[str, str | None]) -> None:
        """Remove the containers (at once, by force), networks and volumes that have all these labels.

        Containers of others on such a network are unplugged first. Also removes what appears meanwhile
        only when called again. Raises ValueError without a label.
        """
        with doing("list containers"):
            filters = aiodocker.utils.clean_filters(label_filter(labels))
            listed = await self._docker.containers.list(all=True, filters=filters)
        await asyncio.gather(*(self._remove(container.id) for container in listed))
        for network in await self.find_networks(labels):
            await self.remove_network(network)
        for volume in await self.find_volumes(labels):
            await self.remove_volume(volume)

    async def _container(self, name: str) -> dict[str, Any] | None:
        with doing(f"look at container {name}"), ignoring(404):
            return dict(await self._docker.containers.container(name).show())
        return None

    async def _holder(self, port: int) -> str | None:
        """The container that publishes a port, in words."""
        with doing("list containers"):
            for container in await self._docker.containers.list():
                if port in {published.get("PublicPort") for published in container["Ports"]}:
                    return f"container {container['Names'][0].lstrip('/')}"
        return None

    async def _create(self, name: str, spec: ContainerSpec) -> Any:
        declared = await self._declared_volumes(spec.image)
        with doing(f"create container {spec.name}"):
            try:
                container = await self._docker.containers.create(spec.engine_config(declared), name=name)
            except aiodocker.DockerError as error:
                if error.status == 404 and "no such image" in error.message.lower():
                    raise ImageUnavailable(
                        f"The server does not have image {spec.image}: pull or load it first.",
                        details={"image": spec.image},
                    ) from error
                raise
            if spec.files:
                await container.put_archive("/", archive(spec.files))
            return container

    async def _declared_volumes(self, image: str) -> list[str]:
        """The paths at which the image declares volumes."""
        with doing(f"look at image {image}"), ignoring(404):
            found = await self._docker.images.inspect(image)
            return sorted(found["Config"].get("Volumes") or {})
        return []

    async def _remove(self, name: str) -> None:
        container = self._docker.containers.container(name)
        with doing(f"remove container {name}"):
            # 409: somebody else is removing it just now; done means that it is gone, whoever did it.
            with ignoring(404, 409):
                await container.delete(force=True, v=True)
            async with asyncio.timeout(_REMOVAL_SECONDS):
                while await self._container(name) is not None:
                    await asyncio.sleep(0.1)

    async def _run_to_end(self, container: Any, spec: ContainerSpec, timeout: float) -> Executed:
        with doing(f"run {spec.name}"):
            await container.start()
            try:
                async with asyncio.timeout(timeout):
                    exit_code = (await container.wait())["StatusCode"]
            except TimeoutError as error:
                raise EngineError(f"{spec.name} was not done within {timeout:g} s.") from error
            stdout = await container.log(stdout=True, tail=_LOG_LINES)
            stderr = await container.log(stderr=True, tail=_LOG_LINES)
        return Executed(exit_code, "".join(stdout).encode(), "".join(stderr).encode())


async def _converse(program: Any, input: bytes | None) -> tuple[bytes, bytes]:
    outputs = {1: bytearray(), 2: bytearray()}
    async with program.start() as stream, contextlib.AsyncExitStack() as stack:
        # The library offers no way to end the input alone; the connection beneath it does.
        transport = stream._resp.connection.transport  # noqa: SLF001
        stack.callback(_cut, transport)
        if input is not None:
            # Beside the reading: a program that answers before it has read everything would block both.
            writer = asyncio.create_task(_feed(stream, transport, input))
            stack.push_async_callback(_settled, writer)
        while (message := await _heard(stream, program)) is not None:
            output = outputs[message.stream]
            output += message.data
            if len(output) > OUTPUT_LIMIT:
                raise EngineError(f"The program wrote more than {OUTPUT_LIMIT >> 20} MiB: let it write less.")
    return bytes(outputs[1]), bytes(outputs[2])


async def _heard(stream: Any, program: Any) -> Any:
    # The engine does not end the stream of a program that ended without reading all of its input.
    while True:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_QUIET_SECONDS):
                return await stream.read_out()
        if not (await program.inspect())["Running"]:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(_QUIET_SECONDS):
                    return await stream.read_out()
            return None


async def _feed(stream: Any, transport: Any, input: bytes) -> None:
    for start in range(0, len(input), 65536):
        await stream.write_in(input[start : start + 65536])
    transport.write_eof()


def _cut(transport: asyncio.Transport) -> None:
    # Input that nobody reads any more would keep a polite close waiting for ever.
    # One that the engine has cut already must not be cut again.
    if not transport.is_closing():
        transport.abort()


async def _settled(writer: asyncio.Task[None]) -> None:
    # A program may end without reading all of its input, as `head` does: what counts is its exit code.
    writer.cancel()
    await asyncio.gather(writer, return_exceptions=True)


async def _exit_code(program: Any) -> int:
    # The streams end a moment before the engine has the exit code.
    while (state := await program.inspect())["Running"] or state["ExitCode"] is None:
        await asyncio.sleep(0.02)
    return int(state["ExitCode"])


def _check(ended: Executed, doing_it: str, environment: Mapping[str, str]) -> None:
    if ended.exit_code == 0:
        return
    output = ended.tail(environment)
    raise CommandFailed(
        f"Could not {doing_it}: it ended with exit status {ended.exit_code}. "
        "See the end of its output in the details.",
        details={"exit_status": ended.exit_code, "output": output},
    )
