"""A server that answers huggingface_hub as the Hugging Face Hub does.

Importing this starts it and directs huggingface_hub to it, also in processes that tests start: none
reaches the real hub.
"""

import base64
import hashlib
import http.server
import json
import os
import re
import shutil
import tempfile
import threading
from pathlib import Path

from huggingface_hub import constants, file_download

# Status codes by the reason, which the hub gives in a header.
STATUS = dict(RepoNotFound=404, RevisionNotFound=404, EntryNotFound=404, GatedRepo=403)
TOKEN = 'hf_of_the_test'


class HubHandler(http.server.BaseHTTPRequestHandler):
    """Reads and writes OWNER/REPO/REVISION/FILE in a folder. OWNER `gated` needs the token."""

    protocol_version = 'HTTP/1.1'

    def log_message(self, *args):
        pass

    def do_HEAD(self):
        self.do_GET()

    def do_GET(self):
        self.server.asked.append((self.command, self.path))
        path = self.path.partition('?')[0]
        if self.server.is_down:
            return self.send(501, b'')
        if match := re.fullmatch('/([^/]+/[^/]+)/resolve/([^/]+)/(.+)', path):
            self.send_file(*match.groups())
        elif match := re.fullmatch('/api/models/([^/]+/[^/]+)/tree/([^/]+)', path):
            self.list_files(*match.groups())
        else:
            self.send(404, b'{}')

    def do_POST(self):
        self.server.asked.append((self.command, self.path))
        body = self.rfile.read(int(self.headers['Content-Length']))
        if self.headers.get('Authorization') != f'Bearer {TOKEN}':
            return self.send(401, b'{}')
        if self.path == '/api/repos/create':
            name = json.loads(body)
            return self.send_json(
                dict(url=f'{self.server.url}/{name["organization"]}/{name["name"]}')
            )
        if self.path == '/api/validate-yaml':
            return self.send_json(dict(errors=[], warnings=[]))
        repo, step = re.fullmatch('/api/models/(.+/.+)/(preupload|commit)/main', self.path).groups()
        if step == 'preupload':
            files = [
                dict(path=file['path'], uploadMode='regular', shouldIgnore=False, oid=None)
                for file in json.loads(body)['files']
            ]
            return self.send_json(dict(files=files))
        for line in body.splitlines():
            change = json.loads(line)
            if change['key'] == 'file':
                content = base64.b64decode(change['value']['content'])
                self.server.add(repo, change['value']['path'], content)
        url = f'{self.server.url}/{repo}/commit/{"a" * 40}'
        return self.send_json(dict(success=True, commitOid='a' * 40, commitUrl=url))

    def find_folder(self, repo, revision):
        """Return the folder of a revision, or None after an answer with the reason."""
        if repo.startswith('gated/') and self.headers.get('Authorization') != f'Bearer {TOKEN}':
            return self.refuse('GatedRepo')
        folder = self.server.folder / repo
        if not folder.is_dir():
            return self.refuse('RepoNotFound')
        if not (folder / revision).is_dir():
            return self.refuse('RevisionNotFound')
        return folder / revision

    def send_file(self, repo, revision, name):
        if folder := self.find_folder(repo, revision):
            commit = {'X-Repo-Commit': hashlib.sha1(revision.encode()).hexdigest()}
            if not (folder / name).is_file():
                return self.refuse('EntryNotFound', commit)
            content = (folder / name).read_bytes()
            etag = f'"{hashlib.sha256(content).hexdigest()}"'
            self.send(200, content, {**commit, 'ETag': etag})

    def list_files(self, repo, revision):
        if folder := self.find_folder(repo, revision):
            files = [path for path in sorted(folder.rglob('*')) if path.is_file()]
            self.send_json(
                [
                    dict(type='file', path=str(path.relative_to(folder)), size=1, oid='0' * 40)
                    for path in files
                ]
            )

    def refuse(self, reason, headers=None):
        self.send(STATUS[reason], b'', {'X-Error-Code': reason, **(headers or {})})

    def send_json(self, value):
        self.send(200, json.dumps(value).encode())

    def send(self, status, content, headers=None):
        self.send_response(status)
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.send_header('Content-Length', str(len(content)))
        self.end_headers()
        if self.command != 'HEAD':
            self.wfile.write(content)


class HubServer(http.server.ThreadingHTTPServer):
    """Serves a folder, which a test fills; without a test, it has no repositories."""

    daemon_threads = True

    def __init__(self):
        super().__init__(('127.0.0.1', 0), HubHandler)
        self.url = f'http://127.0.0.1:{self.server_port}'
        self.root = tempfile.TemporaryDirectory(prefix='hub-')
        self.cache, self.folder = (Path(self.root.name, name) for name in ('cache', 'server'))
        self.clear()
        threading.Thread(target=self.serve_forever, args=[0.01], daemon=True).start()

    def clear(self):
        """Forget all repositories and requests, and empty the cache of huggingface_hub."""
        shutil.rmtree(self.cache, ignore_errors=True)
        shutil.rmtree(self.folder, ignore_errors=True)
        self.asked, self.is_down = [], False

    def add(self, repo, name, content, revision='main'):
        path = self.folder / repo / revision / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)


HUB = HubServer()
os.environ.update(HF_ENDPOINT=HUB.url, HF_HOME=str(HUB.cache), HF_HUB_CACHE=str(HUB.cache / 'hub'))
# huggingface_hub has read these already: mmpretrain imports it.
constants.ENDPOINT, constants.HF_HUB_CACHE = HUB.url, os.environ['HF_HUB_CACHE']
for module in (constants, file_download):
    module.HUGGINGFACE_CO_URL_TEMPLATE = HUB.url + '/{repo_id}/resolve/{revision}/{filename}'
