"""Bodies of HTTP responses, none of which may fill the memory."""

import aiohttp


async def read_body(response: aiohttp.ClientResponse, max_bytes: int) -> bytes:
    """The whole body. Raises ValueError when it is larger than `max_bytes`."""
    body = bytearray()
    async for chunk in response.content.iter_any():
        body += chunk
        if len(body) > max_bytes:
            raise ValueError(f"it is larger than {max_bytes} bytes")
    return bytes(body)
