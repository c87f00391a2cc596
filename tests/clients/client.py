"""Lists and calls the tools of a server with the official Python client.

client.py initialize|auto PLAN COMMAND...

PLAN is a JSON list of [tool, arguments] pairs. The step ["pause", {"ready": FILE, "go": FILE}] creates the first file
and waits for the second. Prints one line of JSON: the protocol version, the tools in the server's order, and each
result as the client returns it. The client's complaints go to stderr.
"""

import asyncio
import json
import os
import sys

from mcp import Client, ClientSession, StdioServerParameters
from mcp.client.stdio import stdio_client


async def run_plan(session, plan):
    listed = await session.list_tools()
    results = []
    for tool, arguments in plan:
        if tool == "pause":
            open(arguments["ready"], "w").close()
            while not os.path.exists(arguments["go"]):
                await asyncio.sleep(0.02)
            continue
        try:
            result = await session.call_tool(tool, arguments)
        except Exception as refused:
            results.append({"error": True, "text": [str(refused)], "structured": None})
            continue
        results.append(
            {
                "error": bool(result.is_error),
                "text": [block.text for block in result.content if block.type == "text"],
                "types": [block.type for block in result.content],
                "structured": result.structured_content,
            }
        )
    return [tool.name for tool in listed.tools], results


async def main():
    way, plan, command = sys.argv[1], json.loads(sys.argv[2]), sys.argv[3:]
    server = StdioServerParameters(command=command[0], args=command[1:], env=dict(os.environ))
    if way == "initialize":
        async with stdio_client(server) as (reader, writer):
            async with ClientSession(reader, writer) as session:
                version = (await session.initialize()).protocol_version
                tools, results = await run_plan(session, plan)
    else:
        async with Client(server, mode=way) as client:
            version = client.protocol_version
            tools, results = await run_plan(client, plan)
    print(json.dumps({"version": version, "tools": tools, "results": results}))


asyncio.run(main())
