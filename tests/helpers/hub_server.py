"""A server that speaks as much of the Hugging Face hub's protocol as its client asks for."""

import hashlib
import http.server
import json
import socket

from huggingface_hub import constants, file_download

NAME, REPOSITORY = "mobilevit_xxs.cvnets_in1k", "timm/mobilevit_xxs.cvnets_in1k"
COMMIT, LATER = "a" * 40, "b" * 40
FILE = "model.safetensors"


class Hub(http.server.ThreadingHTTPServer):
    """repositories: name -> {commit: {file: bytes}}; main leads to the commit named in `heads`, others to those in `branches`.

    refusals: repository or file -> (status, error code)
    cuts: after how many bytes the next bodies end, and the connection with them
    """

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server_address[1]}"
        self.repositories, self.heads, self.refusals, self.cuts, self.log, self.tokens = {}, {}, {}, [], [], set()
        self.blobs, self.branches = {}, {}

    def publish(self, repository, commit=COMMIT, **files):
        """Keyword names are file names with __ for the dot."""
        contents = {name.replace("__", "."): data for name, data in files.items()}
        self.repositories.setdefault(repository, {})[commit] = contents
        self.heads[repository] = commit
        self.blobs |= {hashlib.sha256(data).hexdigest(): data for data in contents.values()}

    def handle_error(self, request, client_address):
        pass  # a client that has gone


class Handler(http.server.BaseHTTPRequestHandler):
    """As the hub: HEAD of a file answers with its commit and ETag and leads elsewhere, where GET takes a Range."""

    def do_HEAD(self):
        self.server.log.append(("HEAD", self.path, None))
        self.server.tokens.add(self.headers.get("Authorization"))
        repository, _, rest = self.path[1:].partition("/resolve/")
        revision, _, file = rest.partition("/")
        for what in {repository, file} & self.server.refusals.keys():
            return self.refuse(*self.server.refusals[what])
        if repository not in self.server.repositories:
            return self.refuse(401, "RepoNotFound")  # what an anonymous client is told
        commit = self.server.heads[repository] if revision == "main" else self.server.branches.get(revision, revision)
        if commit not in self.server.repositories[repository]:
            return self.refuse(404, "RevisionNotFound")
        files = self.server.repositories[repository][commit]
        if file not in files:
            return self.refuse(404, "EntryNotFound", commit)
        sha256 = hashlib.sha256(files[file]).hexdigest()
        self.send_response(302)
        self.send_header("X-Repo-Commit", commit)
        self.send_header("X-Linked-ETag", f'"{sha256}"')
        self.send_header("X-Linked-Size", str(len(files[file])))
        self.send_header("Location", f"http://localhost:{self.server.server_address[1]}/content/{sha256}")
        self.send_header("Content-Length", "0")
        self.end_headers()

    def do_GET(self):
        if self.path.startswith("/api/models/"):
            return self.describe()
        if not self.path.startswith("/content/"):  # the client has other questions of its own
            return self.refuse(404, "")
        self.server.log.append(("GET", self.path, self.headers.get("Range")))
        data = self.server.blobs[self.path.rpartition("/")[2]]
        start = 0
        if asked := self.headers.get("Range"):
            start = int(asked.removeprefix("bytes=").partition("-")[0])
        self.send_response(206 if asked else 200)
        if asked:
            self.send_header("Content-Range", f"bytes {start}-{len(data) - 1}/{len(data)}")
        self.send_header("Content-Length", str(len(data) - start))
        self.end_headers()
        if self.server.cuts:
            self.wfile.write(data[start : start + self.server.cuts.pop(0)])
            self.wfile.flush()
            self.connection.shutdown(socket.SHUT_RDWR)
            self.close_connection = True
        else:
            self.wfile.write(data[start:])

    def describe(self):
        """A repository at a commit: the names of its files, and more that is left out here."""
        self.server.log.append(("GET", self.path, None))
        repository, _, revision = self.path.removeprefix("/api/models/").partition("/revision/")
        commit = self.server.heads.get(repository) if revision in ("", "main") else self.server.branches.get(revision, revision)
        files = self.server.repositories.get(repository, {}).get(commit)
        if files is None:
            return self.refuse(404, "RevisionNotFound" if repository in self.server.repositories else "RepoNotFound")
        told = {"id": repository, "sha": commit, "siblings": [{"rfilename": name} for name in files]}
        body = json.dumps(told).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def refuse(self, status, code, commit=None):
        self.send_response(status)
        self.send_header("X-Error-Code", code)
        if commit:
            self.send_header("X-Repo-Commit", commit)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, *args):
        pass


def point_at(url, monkeypatch):
    monkeypatch.setattr(constants, "ENDPOINT", url)
    for module in (constants, file_download):
        if hasattr(module, "HUGGINGFACE_CO_URL_TEMPLATE"):
            monkeypatch.setattr(module, "HUGGINGFACE_CO_URL_TEMPLATE", url + "/{repo_id}/resolve/{revision}/{filename}")


def block_sockets(monkeypatch):
    def refuse(*args, **options):
        raise AssertionError("the network was used")

    for name in ("connect", "connect_ex", "sendto"):
        monkeypatch.setattr(socket.socket, name, refuse)
    for name in ("getaddrinfo", "create_connection"):
        monkeypatch.setattr(socket, name, refuse)
