"""Test servers, most of which misbehave, each behind a Unix socket: servers.py KIND SOCKET.

Prints `ready` once it is listening. Each connection has its own thread; the process exits when its stdin ends.
"""

import base64
import hashlib
import json
import os
import socket
import sys
import threading
import time

KIND, PATH = sys.argv[1:3]

ECHO = {
    "name": "echo",
    "description": "Gives back its arguments.\nSecond line.",
    "inputSchema": {
        "type": "object",
        "additionalProperties": False,
        "properties": {
            "text": {"type": "string"},
            "count": {"type": "integer"},
            "sure": {"type": "boolean"},
            "data": {"type": "string", "contentEncoding": "base64"},
        },
    },
}
FETCH = {
    "name": "fetch",
    "description": "Gives a file.",
    "inputSchema": {"type": "object", "properties": {"path": {}, "offset": {}, "length": {}}},
    "outputSchema": {"type": "object", "properties": {"complete": {}, "size": {}, "offset": {}, "sha256": {}}},
}


def written(value):
    # JSON allows this character unescaped; with escapes, a long string would be six times as long.
    return json.dumps(value).encode().replace(rb"\u007f", b"\x7f") + b"\n"


class Connection:
    def __init__(self, stream):
        self.stream = stream
        self.lines = stream.makefile("rb")

    def raw(self, data):
        self.stream.sendall(data)

    def say(self, **message):
        self.raw(written({"jsonrpc": "2.0", **message}))

    def hear(self):
        line = self.lines.readline()
        if not line:
            raise EOFError
        return json.loads(line)

    def request(self):
        """Reads the next request, and skips notifications."""
        while True:
            message = self.hear()
            if "id" in message and "method" in message:
                return message

    def result(self, request, result):
        self.say(id=request["id"], result=result)

    def greet(self):
        request = self.request()
        assert request["method"] == "initialize", request
        self.result(request, GREETING)

    def serve(self, tools, call):
        """Acts as a well-behaved server with these tools."""
        self.greet()
        while True:
            request = self.request()
            if request["method"] == "tools/list":
                self.result(request, {"tools": tools})
            else:
                call(request)

    def text(self, request, text, **more):
        self.result(request, {"content": [{"type": "text", "text": text}], **more})


GREETING = {"protocolVersion": "2025-11-25", "capabilities": {"tools": {}}, "serverInfo": {"name": "x", "version": "1"}}


def echo(c):
    c.serve([ECHO], lambda r: c.text(r, json.dumps(r["params"].get("arguments"))))


def bytes_as_they_are(c):
    c.serve([], lambda r: c.text(r, "a\r\n\x1b[2J\x9b\u202eé\n\nno newline"))


def escapes(c):
    evil = "\x1b]0;owned\x07\x9b2J\u202e"
    tool = {"name": "t" + evil, "description": "d" + evil + "\nsecond", "inputSchema": {"type": "object"}}
    c.serve([tool], lambda r: c.text(r, "failed" + evil + "\n  = help: run this", isError=True))


def other_content(c):
    image = {"type": "image", "data": "AAAA", "mimeType": "image/png"}
    link = {"type": "resource_link", "uri": "file:///x", "name": "x"}
    text = {"type": "text", "text": "text"}
    c.serve([], lambda r: c.result(r, {"content": [text, image, link], "more": {"kept": [1]}}))


def structured_only(c):
    c.serve([], lambda r: c.result(r, {"content": [], "structuredContent": {"a": 1}}))


def endless_line(c):
    c.request()
    while True:
        c.raw(b"x" * 65536)


def endless_notifications(c):
    c.greet()
    c.request()
    message = json.dumps({"jsonrpc": "2.0", "method": "notifications/message", "params": {"data": "x" * 1000}}).encode() + b"\n"
    while True:
        c.raw(message * 100)


def endless_requests(c):
    c.greet()
    c.request()
    number = 0
    while True:
        number += 1
        c.say(id=number, method="sampling/createMessage", params={})


def endless_answer(c):
    c.greet()
    request = c.request()
    c.raw(b'{"jsonrpc":"2.0","id":%d,"result":{"content":[{"type":"text","text":"' % request["id"])
    for _ in range(20):
        c.raw(b"x" * 1024 * 1024)
    c.raw(b'"}]}}\n')
    c.hear()


def wrong_ids(c):
    c.greet()
    request = c.request()
    for wrong in (0, 1, request["id"] + 1, str(request["id"]), float(request["id"]), -request["id"], None, [2], {}):
        c.say(id=wrong, result={"content": [{"type": "text", "text": "wrong"}]})
    c.text(request, "right")
    c.hear()


def mute(c):
    c.hear()
    time.sleep(1000)


def mute_later(c):
    c.greet()
    time.sleep(1000)


def deaf(c):
    time.sleep(1000)


def gone(c):
    pass


def gone_later(c):
    c.greet()
    c.request()


def half_a_line(c):
    c.greet()
    request = c.request()
    c.raw(b'{"jsonrpc":"2.0","id":%d,"result":{"cont' % request["id"])


def garbage(c):
    c.raw(b"Welcome! \x1b[31m\n")
    c.hear()


def old_refusal(c):
    request = c.request()
    c.say(error={"code": -32600, "message": "no \x1b[2J"})
    c.hear()


def not_a_result(c):
    c.greet()
    c.result(c.request(), {"tools": [{"name": 7}]})
    c.hear()


def many_tools(c):
    tools = [{"name": "t%d" % n, "inputSchema": {}} for n in range(20000)]
    c.serve(tools, None)


def many_values(c):
    c.greet()
    c.result(c.request(), {"tools": [], "junk": [{"": 0}] * 1_000_000})


def many_values_on_pages(c):
    c.greet()
    for page in range(3):
        c.result(c.request(), {"tools": [], "junk": [0] * 49_000, "nextCursor": str(page)})


def deep(c):
    c.greet()
    nested = []
    for _ in range(100):
        nested = [nested]
    c.result(c.request(), {"tools": [], "x": nested})


# Each character is displayed as six.
LONG = "\x7f" * (15 * 1024 * 1024)


def long_member(c):
    c.greet()
    c.result(c.request(), {"tools": LONG})


def long_greeting(c):
    c.result(c.request(), LONG)


def long_line(c):
    c.raw(written(LONG))
    c.hear()


def long_error(c):
    c.greet()
    c.say(id=c.request()["id"], error={"code": 1, "message": LONG})


def long_answer(c):
    c.serve([], lambda r: c.text(r, LONG))


def long_list(c):
    tools = [{"name": "t%d" % n, "description": "x" * 1500, "inputSchema": {}} for n in range(9_999)]
    c.serve(tools, None)


def long_asides(c):
    """Sends several messages that are not the answer before each answer."""
    c.greet()
    while True:
        request = c.request()
        c.say(id=[{"": 0}] * 600_000, result={})
        c.say(id=LONG[:2_000_000], result={})
        c.say(method="notifications/progress", params=LONG[:2_000_000])
        c.say(method="notifications/progress", params={"progressToken": LONG[:2_000_000]})
        c.result(request, {"tools": []})


def long_line_aside(c):
    c.greet()
    request = c.request()
    c.raw(written(LONG))
    c.result(request, {"tools": []})
    c.hear()


def endless_pages(c):
    c.greet()
    number = 0
    while True:
        number += 1
        c.result(c.request(), {"tools": [{"name": "t%d" % number, "inputSchema": {}}], "nextCursor": str(number)})


def pages(c):
    c.greet()
    c.result(c.request(), {"tools": [{"name": "a", "inputSchema": {}}], "nextCursor": "2", "kept": 1})
    request = c.request()
    assert request["params"]["cursor"] == "2", request
    c.result(request, {"tools": [{"name": "b", "description": "é", "inputSchema": {}}]})
    c.hear()


def asks(c):
    """Sends requests to its client before it answers, and waits for the replies."""
    c.greet()
    request = c.request()
    c.say(id="p", method="ping")
    c.say(id="s", method="sampling/createMessage", params={})
    replies = [c.hear(), c.hear()]
    c.text(request, json.dumps([{"id": r["id"], "result": r.get("result"), "code": r.get("error", {}).get("code")} for r in replies]))
    c.hear()


def slow_with_progress(c):
    c.greet()
    request = c.request()
    token = request["params"]["_meta"]["progressToken"]
    for step in range(12):
        time.sleep(0.25)
        c.say(method="notifications/progress", params={"progressToken": token, "progress": step})
    c.text(request, "done")
    c.hear()


def refuses(c):
    def call(request):
        c.say(id=request["id"], error={"code": -32602, "message": "Unknown tool: " + request["params"]["name"]})

    c.serve([ECHO], call)


def bad_parameters(c):
    c.serve([ECHO], lambda r: c.say(id=r["id"], error={"code": -32602, "message": "bad \x1b arguments"}))


def pieces(lie):
    whole = bytes(range(256)) * (10 * 4096)

    def run(c):
        def call(request):
            arguments = request["params"]["arguments"]
            start = arguments["offset"]
            piece = whole[start:start + arguments["length"]]
            end = start + len(piece)
            said = {"size": len(whole), "offset": start, "complete": end == len(whole)}
            if said["complete"]:
                said["sha256"] = hashlib.sha256(whole).hexdigest()
            piece = lie(said, piece) if start else piece
            c.text(request, base64.b64encode(piece).decode(), structuredContent=said)

        c.serve([FETCH], call)

    return run


def other_bytes(said, piece):
    return b"x" * len(piece)


def other_size(said, piece):
    said["size"] += 1
    return piece


def nothing(said, piece):
    return b""


def no_digest(said, piece):
    said.pop("sha256", None)
    return piece


def huge(c):
    said = {"size": 1 << 60, "offset": 0, "complete": False}
    c.serve([FETCH], lambda r: c.text(r, "AAAA", structuredContent=said))


def silent_http(c):
    time.sleep(1000)


def no_http(c):
    c.lines.readline()
    c.raw(b"hello\r\n\r\n")
    time.sleep(1000)


def http(status, body):
    def run(c):
        while True:
            line = c.lines.readline()
            if not line:
                return
            while c.lines.readline().strip():
                pass
            answer = body if isinstance(body, bytes) else body(line.decode().split()[1])
            c.raw(b"HTTP/1.1 %d X\r\nContent-Length: %d\r\n\r\n%s" % (status, len(answer), answer))

    return run


def machine(path):
    found = [{"name": "box", "project": "p", "status": "Running", "type": "container"}]
    return json.dumps({"type": "sync", "metadata": found}).encode()


KINDS = {
    "pieces": pieces(lambda said, piece: piece),
    "pieces_other_bytes": pieces(other_bytes),
    "pieces_other_size": pieces(other_size),
    "pieces_nothing": pieces(nothing),
    "pieces_no_digest": pieces(no_digest),
    "incus": http(200, machine),
    "incus_refuses": http(403, json.dumps({"type": "error", "error": "not \x1b you"}).encode()),
    "incus_changed": http(200, b'{"metadata":[{"title":"box"}]}'),
}


def handle(stream):
    kind = KINDS.get(KIND) or globals()[KIND]
    try:
        kind(Connection(stream))
    except (EOFError, BrokenPipeError, ConnectionResetError):
        pass
    finally:
        # If data is still unread, the peer sees a reset.
        stream.close()


def accept(listener):
    while True:
        stream, _ = listener.accept()
        threading.Thread(target=handle, args=(stream,), daemon=True).start()


listener = socket.socket(socket.AF_UNIX)
listener.bind(PATH)
listener.listen(16)
threading.Thread(target=accept, args=(listener,), daemon=True).start()
print("ready", flush=True)
sys.stdin.read()
os._exit(0)
