"""A small asynchronous service: one JSON object a line over TCP, one answer a line.

    python examples/service.py --port 8765
    echo '{"prompt": "add 45 + 67", "budget": "300ms"}' | nc localhost 8765

Requests of all connections share denoising steps. For OpenAI's protocol over HTTP use
`hybrid serve` instead.
"""

import argparse
import asyncio
import json

from hybrid import AsyncHybrid, HybridError


async def answer(hybrid: AsyncHybrid, line: bytes) -> dict[str, object]:
    """The answer to one line, or what is wrong with it."""
    try:
        request = json.loads(line)
        result = await hybrid.generate(request["prompt"], budget=request.get("budget", "1s"))
    except (ValueError, KeyError, HybridError) as error:
        return {"error": f"{type(error).__name__}: {error}"}
    return {"text": result.text, "plan": result.plan.label, "seconds": result.timing.total_s}


async def serve(port: int) -> None:
    """Listen until cancelled; port 0 takes a free one. Prints the port once it listens."""
    async with AsyncHybrid.from_policy("balanced") as hybrid:

        async def converse(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            while line := await reader.readline():
                writer.write(json.dumps(await answer(hybrid, line)).encode() + b"\n")
                await writer.drain()
            writer.close()

        server = await asyncio.start_server(converse, "127.0.0.1", port)
        print(f"listening on port {server.sockets[0].getsockname()[1]}", flush=True)
        async with server:
            await server.serve_forever()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--port", type=int, default=8765)
    asyncio.run(serve(parser.parse_args().port))
