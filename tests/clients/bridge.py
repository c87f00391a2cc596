"""Serves a stdio MCP server over HTTP on the loopback interface, for clients that support nothing else.

bridge.py COMMAND...

Prints its URL on a line, and serves until its stdin ends. Each session has its own server. Answers are JSON, never an
event stream; unsolicited messages from the server are dropped.
"""

import http.server
import json
import subprocess
import sys
import threading
import uuid

COMMAND = sys.argv[1:]
SESSIONS = {}


class Session:
    """A server that handles one message at a time."""

    def __init__(self):
        self.lock = threading.Lock()
        self.server = subprocess.Popen(COMMAND, stdin=subprocess.PIPE, stdout=subprocess.PIPE)

    def tell(self, message):
        """Sends a message and returns the answer if it is a request."""
        with self.lock:
            self.server.stdin.write(json.dumps(message).encode() + b"\n")
            self.server.stdin.flush()
            while "id" in message and "method" in message:
                answer = json.loads(self.server.stdout.readline())
                if answer.get("id") == message["id"]:
                    return answer

    def end(self):
        self.server.stdin.close()
        self.server.wait()


class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_POST(self):
        # Read the body of a refused request too, because the next request on the connection follows it.
        body = self.rfile.read(int(self.headers["Content-Length"]))
        # Refuse requests from another site's page whose host name resolves to this server (DNS rebinding).
        for header in ("Host", "Origin"):
            value = self.headers.get(header)
            if value and value.split("//")[-1].split(":")[0] not in ("127.0.0.1", "localhost", "[", "::1"):
                return self.say(403)
        message = json.loads(body)
        if message.get("method") == "initialize":
            name = uuid.uuid4().hex
            SESSIONS[name] = Session()
        else:
            name = self.headers.get("Mcp-Session-Id")
        if name not in SESSIONS:
            return self.say(404)
        answer = SESSIONS[name].tell(message)
        self.say(202 if answer is None else 200, answer, name)

    def do_DELETE(self):
        session = SESSIONS.pop(self.headers.get("Mcp-Session-Id"), None)
        self.say(200 if session else 404)
        if session:
            session.end()

    def do_GET(self):
        self.say(405)

    def say(self, status, body=None, session=None):
        text = b"" if body is None else json.dumps(body).encode()
        self.send_response(status)
        if session:
            self.send_header("Mcp-Session-Id", session)
        if text:
            self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text)

    def log_message(self, *_):
        pass


bridge = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
threading.Thread(target=bridge.serve_forever, daemon=True).start()
print(f"http://127.0.0.1:{bridge.server_address[1]}/mcp", flush=True)
sys.stdin.read()
bridge.shutdown()
for session in SESSIONS.values():
    session.end()
