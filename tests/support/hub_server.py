"""A small server of the part of the Hub's API with which huggingface_hub uploads and downloads models."""

import base64
import hashlib
import json
import re
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import urlsplit

TOKEN = "hf_doNotWriteThisDownAnywhere"


class HubServer:
    """Model repositories of the user `me`, readable by all who ask, written to with `TOKEN`."""

    def __init__(self):
        self.repositories = {}  # name: {path: bytes}
        self.private = {}  # name: whether the repository was created private
        self.messages = []  # of the commits, in order

    @contextmanager
    def running(self):
        """The server's address."""
        hub = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"
            disable_nagle_algorithm = True  # which would wait between headers and body

            def do_GET(self):
                self.answer(*hub.get(urlsplit(self.path).path))

            def do_HEAD(self):
                self.do_GET()

            def do_POST(self):
                body = self.rfile.read(int(self.headers["Content-Length"]))
                if self.headers["Authorization"] == f"Bearer {TOKEN}":
                    self.answer(*hub.post(urlsplit(self.path).path, body))
                else:
                    self.answer(401, {"error": "Not logged in"}, {})

            def answer(self, status, content, headers):
                data = content if isinstance(content, bytes) else json.dumps(content).encode()
                self.send_response(status)
                for name, value in {"Content-Length": str(len(data)), **headers}.items():
                    self.send_header(name, value)
                self.end_headers()
                if self.command != "HEAD":
                    self.wfile.write(data)

            def log_message(self, *_):
                pass

        server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{server.server_port}"
        threading.Thread(target=server.serve_forever, daemon=True).start()
        try:
            yield self.url
        finally:
            server.shutdown()
            server.server_close()

    def get(self, path):
        if path == "/api/whoami-v2":
            return 200, {"type": "user", "name": "me", "auth": {"accessToken": {"role": "write"}}}, {}
        if match := re.fullmatch(r"/(me/\w+)/resolve/[^/]+/(.+)", path):
            name, file, answer = *match.groups(), self.file
        elif match := re.fullmatch(r"/api/models/(me/\w+)/tree/[^/]+(?:/(.+))?", path):
            name, file, answer = *match.groups(), self.tree
        elif match := re.fullmatch(r"/api/models/(me/\w+)(?:/revision/([^/]+))?", path):
            name, file, answer = *match.groups(), self.info
        else:
            return 404, {"error": "Not found"}, {}
        if name not in self.repositories:
            return 404, {"error": "Repository not found"}, {"X-Error-Code": "RepoNotFound"}
        files = self.repositories[name]
        return answer(name, files, hashlib.sha1(repr(files).encode()).hexdigest(), file)

    def info(self, name, files, commit, _):
        private = self.private.get(name, False)
        return (
            200,
            {"id": name, "sha": commit, "private": private, "siblings": [{"rfilename": one} for one in files]},
            {},
        )

    def tree(self, name, files, commit, folder):
        found = [one for one in files if folder is None or one.startswith(f"{folder}/")]
        if not found:
            return 404, {"error": "Entry not found"}, {"X-Error-Code": "EntryNotFound"}
        return 200, [{"type": "file", "path": one, "size": len(files[one]), "oid": "0" * 40} for one in found], {}

    def file(self, name, files, commit, path):
        headers = {"X-Repo-Commit": commit}
        if path not in files:
            return 404, {"error": "Entry not found"}, {"X-Error-Code": "EntryNotFound", **headers}
        return 200, files[path], {"ETag": f'"{hashlib.sha1(files[path]).hexdigest()}"', **headers}

    def post(self, path, body):
        if path == "/api/repos/create":
            asked = json.loads(body)
            name = f"me/{asked['name']}"
            if name not in self.repositories:
                self.repositories[name] = {}
                self.private[name] = asked.get("visibility") == "private"
            return 200, {"url": f"{self.url}/{name}"}, {}
        if path == "/api/validate-yaml":
            return 200, {"errors": [], "warnings": []}, {}
        name, action = re.fullmatch(r"/api/models/(me/\w+)/(preupload|commit)/main", path).groups()
        if action == "preupload":
            paths = [one["path"] for one in json.loads(body)["files"]]
            files = [{"path": one, "uploadMode": "regular", "shouldIgnore": False} for one in paths]
            return 200, {"files": files}, {}
        for line in map(json.loads, body.splitlines()):
            if line["key"] == "header":
                self.messages.append(line["value"]["summary"])
            else:
                assert line["key"] == "file", line
                self.repositories[name][line["value"]["path"]] = base64.b64decode(line["value"]["content"])
        return 200, {"commitUrl": f"{self.url}/{name}/commit/{'0' * 40}", "commitOid": "0" * 40}, {}
