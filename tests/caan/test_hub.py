"""Models fetched from a hub: huggingface_hub's own client, and a small server on this machine that answers as the Hub does."""

import hashlib
import json
import os
import sys
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread

import pytest
import torch
from models import attentive

import caan
from caan import CAAN, ModelConfig, Vocabulary, errors

COMMIT = "0123456789" * 4


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    vocabulary = Vocabulary.from_captions(["a dog runs", "two cats"], 1)
    return caan.Model(attentive(CAAN(ModelConfig(6, len(vocabulary), width=8, word_width=4))), vocabulary)


class Hub(BaseHTTPRequestHandler):
    """Of the repositories in `folder`, the branches main and v1, which are the same."""

    folder = None

    def do_GET(self):
        path = self.path.split("?")[0].strip("/")
        kind, repository, *rest = self.split(path)
        files = {file.name: file.read_bytes() for file in (self.folder / repository).glob("*")}
        if repository == "closed/pets":
            return self.answer(403, {"X-Error-Code": "GatedRepo"})
        if not files:
            return self.answer(404, {"X-Error-Code": "RepoNotFound"})
        if rest[1] not in ("main", "v1", COMMIT):
            return self.answer(404, {"X-Error-Code": "RevisionNotFound"})
        if kind == "file":
            content = files[rest[2]]
            return self.answer(200, {"X-Repo-Commit": COMMIT, "ETag": f'"{hashlib.sha1(content).hexdigest()}"'}, content)
        listed = [{"type": "file", "path": name, "oid": "0", "size": len(content)} for name, content in files.items()]
        info = {"id": repository, "sha": COMMIT, "siblings": [{"rfilename": name} for name in files]}
        return self.answer(200, {"Content-Type": "application/json"}, json.dumps(listed if rest[0] == "tree" else info).encode())

    do_HEAD = do_GET

    @staticmethod
    def split(path):
        """What is asked for, of which repository, and the rest of the path: /OWNER/NAME/resolve/..., /api/models/OWNER/NAME/..."""
        parts = path.split("/")
        kind, parts = ("about", parts[2:]) if parts[0] == "api" else ("file", parts)
        return kind, "/".join(parts[:2]), *parts[2:]

    def answer(self, status, headers, content=b""):
        self.send_response(status)
        for name, value in {**headers, "Content-Length": str(len(content))}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(content)

    def log_message(self, *arguments):
        pass


def forget_client():
    """Modules of huggingface_hub, so that they are imported again."""
    return {name: sys.modules.pop(name) for name in list(sys.modules) if name.split(".")[0] == "huggingface_hub"}


@pytest.fixture(scope="module")
def hub(model, tmp_path_factory):
    """The server. What huggingface_hub reads of the environment it reads when it is imported."""
    folder = tmp_path_factory.mktemp("hub")
    model.save_pretrained(folder / "somebody" / "pets")
    (folder / "somebody" / "others").mkdir()
    (folder / "somebody" / "others" / "config.json").write_text('{"model_type": "bert"}')
    (folder / "somebody" / "others" / "model.safetensors").write_bytes(b"")
    (folder / "somebody" / "texts").mkdir()
    (folder / "somebody" / "texts" / "README.md").write_text("nothing else")
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Here", (Hub,), {"folder": folder}))
    thread = Thread(target=server.serve_forever)
    thread.start()
    with pytest.MonkeyPatch.context() as patch:
        for name in os.environ:
            if name.startswith(("HF_", "HUGGINGFACE_", "TRANSFORMERS_")):
                patch.delenv(name)
        patch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{server.server_port}")
        patch.setenv("HF_HOME", str(folder / "home"))
        for name in ("no_proxy", "NO_PROXY"):
            patch.setenv(name, "127.0.0.1")
        known = forget_client()
        yield server
        forget_client()
        sys.modules.update(known)
    server.shutdown()
    thread.join()
    server.server_close()


def test_a_model_is_fetched(hub, model, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    features = torch.randn(3, 4, 6, generator=torch.Generator().manual_seed(0))
    for revision in (None, "v1", COMMIT):
        found = caan.Model.from_pretrained("somebody/pets", revision=revision)
        assert torch.equal(found.score(features, ["a dog runs"]), model.score(features, ["a dog runs"]))


@pytest.mark.parametrize(
    ("name", "revision", "message"),
    [
        ("nobody/pets", None, "name: expected a folder, or OWNER/NAME .*, got 'nobody/pets', which is neither; a private model"),
        ("closed/pets", None, "name: expected a model that you may read, got 'closed/pets': ask for access on its page"),
        ("somebody/pets", "v2", "revision: expected a branch, tag or commit of somebody/pets, got 'v2'"),
        ("somebody/texts", None, "name: expected a model of caan, got 'somebody/texts', which has no config.json"),
        ("somebody/others", None, ".*config.json: expected a model of format caan-2, found None"),
        ("some--body/pets", None, "name: expected a folder, or OWNER/NAME .*, got 'some--body/pets': "),
        ("nothing", None, "name: expected a folder with config.json and model.safetensors, or OWNER/NAME .*, got 'nothing'"),
    ],
)
def test_what_cannot_be_fetched(hub, tmp_path, monkeypatch, name, revision, message):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(errors.DataError, match=f"^{message}"):
        caan.Model.from_pretrained(name, revision=revision)


def test_without_the_hub(hub, tmp_path, monkeypatch):
    """What was fetched is there; what was not is named."""
    monkeypatch.chdir(tmp_path)
    caan.Model.from_pretrained("somebody/pets")
    monkeypatch.setattr(hub.RequestHandlerClass, "do_GET", lambda request: request.answer(500, {}))
    caan.Model.from_pretrained("somebody/pets")
    with pytest.raises(
        errors.MissingFileError, match="^name: .*, got 'nobody/dogs', which is not a folder, was not fetched before"
    ):
        caan.Model.from_pretrained("nobody/dogs")


def test_a_connection_that_is_cut(hub, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)

    def cut(request):
        request.send_response(200)
        request.send_header("Content-Length", "1000")
        request.end_headers()
        request.wfile.write(b"{")
        request.close_connection = True

    monkeypatch.setattr(hub.RequestHandlerClass, "do_GET", cut)
    with pytest.raises(errors.MissingFileError, match="^name: .*, got 'nobody/birds'"):
        caan.Model.from_pretrained("nobody/birds")


def test_without_its_package(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(ModuleNotFoundError, match="^name: .* got 'somebody/pets', and .*; .*`pip install huggingface_hub`$"):
        caan.Model.from_pretrained("somebody/pets")
