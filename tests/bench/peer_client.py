"""The peer: a Python SDK client that starts the peer server, lists its tools, and exits."""

import asyncio
import pathlib
import sys

from mcp import ClientSession, StdioServerParameters, stdio_client

server = pathlib.Path(__file__).with_name("peer_server.py")


async def main() -> None:
    parameters = StdioServerParameters(command=sys.executable, args=[str(server)])
    async with stdio_client(parameters) as (read, write), ClientSession(read, write) as session:
        await session.initialize()
        tools = (await session.list_tools()).tools
        if len(tools) != 5:
            sys.exit(f"the peer has {len(tools)} tools")
        print(*(tool.name for tool in tools))


asyncio.run(main())
