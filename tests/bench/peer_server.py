"""The peer: a Python SDK server with the tools; the benchmark calls one of them."""

from mcp.server.mcpserver import MCPServer

server = MCPServer("peer")
clipboard = [""]


@server.tool()
def clipboard_get() -> str:
    """Return the text of the clipboard."""
    return clipboard[0]


@server.tool()
def clipboard_set(content: str) -> None:
    """Set the text of the clipboard."""
    clipboard[0] = content


@server.tool()
def gpg_sign(data: str, key_id: str | None = None) -> str:
    """Sign data."""
    raise NotImplementedError(data, key_id)


@server.tool()
def file_accept(path: str, data: str, mode: str | None = None) -> str:
    """Receive a file."""
    raise NotImplementedError(path, data, mode)


@server.tool()
def file_provide(path: str) -> str:
    """Return a file."""
    raise NotImplementedError(path)


server.run("stdio")
