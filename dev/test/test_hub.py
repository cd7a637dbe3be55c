#!/usr/bin/env python3
"""Downloads from the model hub, by a local server that plays it: connections that break, answers 429 and 503, files that are not what the hub says, redirects, proxies; and dev/convert.py from a repository to a .bin, with a Python that has no numpy, too."""
import contextlib
import hashlib
import http.server
import json
import os
import subprocess
import sys
import tempfile
import threading

import numpy as np

import checkpoint_files
import checks
from checkpoint_files import hf_json, hf_tensors, weights, write_safetensors
from checks import check

DEV = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
sys.path.insert(0, DEV)
import hub  # noqa: E402
from checkpoints import Refused  # noqa: E402

sys.modules["huggingface_hub"] = None  # its import fails, wherever it is installed
REPOSITORY, COMMIT = "some/model", "0123abcd"


class Server:
    """Plays the hub. files: name -> bytes; answers: what the next requests for a file get instead, each a code, ("cut", bytes) or None."""

    def __init__(self, files, **more):
        self.files, self.answers, self.seen, self.lie, self.ranges, self.elsewhere = files, [], [], {}, True, None
        self.__dict__.update(more)
        outer = self

        class Handler(http.server.BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def log_message(self, *_):
                pass

            def do_GET(self):
                outer.answer(self)
        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        self.address = f"http://127.0.0.1:{self.server.server_address[1]}"
        threading.Thread(target=self.server.serve_forever, args=(0.01,), daemon=True).start()

    def send(self, request, code, data=b"", cut=None, **headers):
        request.send_response(code)
        for name, value in {"Content-Length": str(len(data)), **headers}.items():
            request.send_header(name.replace("_", "-"), value)
        request.end_headers()
        request.wfile.write(data[:cut])
        if cut is not None:
            request.wfile.flush()
            request.close_connection = True

    def listing(self):
        siblings = [{"rfilename": name, "size": len(data), "lfs": {"sha256": self.lie.get(name, hashlib.sha256(data).hexdigest()), "size": len(data)}}
                    for name, data in self.files.items()]
        return json.dumps({"sha": COMMIT, "siblings": siblings}).encode()

    def answer(self, request):
        path = request.path.replace("http://hub.invalid", "")
        self.seen.append((request.path, dict(request.headers)))
        if path.startswith("/api/models/"):
            return self.send(request, 200, self.listing()) if path.startswith(f"/api/models/{REPOSITORY}?") else self.send(request, 404)
        data = self.files[path.split("/")[-1]]
        answer = self.answers.pop(0) if self.answers else None
        if self.elsewhere:
            return self.send(request, 302, Location=self.elsewhere + path)
        if isinstance(answer, int):
            return self.send(request, answer, Retry_After="0")
        offset = int(request.headers.get("Range", "bytes=0-")[6:-1]) if self.ranges else 0
        headers = {"Content_Range": f"bytes {offset}-{len(data) - 1}/{len(data)}"} if offset else {}
        return self.send(request, 206 if offset else 200, data[offset:], cut=answer[1] if answer else None, **headers)

    def close(self):
        self.server.shutdown()
        self.server.server_close()


@contextlib.contextmanager
def playing(files, **more):
    """A server and a new cache; -> the server"""
    server, before = Server(files, **more), dict(os.environ)
    with tempfile.TemporaryDirectory() as cache:
        for name in ("http_proxy", "HTTP_PROXY", "HF_TOKEN", "HUGGING_FACE_HUB_TOKEN"):
            os.environ.pop(name, None)
        os.environ.update(HF_ENDPOINT=server.address, XDG_CACHE_HOME=cache, HF_HOME=cache, no_proxy="")
        pauses = []
        hub.time.sleep, sleep = pauses.append, hub.time.sleep
        server.pauses = pauses
        try:
            yield server
        finally:
            hub.time.sleep = sleep
            os.environ.clear()
            os.environ.update(before)
            server.close()


DATA = np.random.default_rng(1).integers(0, 256, 300_007, np.uint8).tobytes()


def fetched(name="a.bin"):
    """-> bytes of a file of the repository, or what the refusal says"""
    said = []
    try:
        _, fetch = hub.open_repository(REPOSITORY, said.append)
        with open(fetch(name), "rb") as f:
            return f.read()
    except Refused as e:
        return str(e)


def ranges(server):
    return [h.get("Range") for p, h in server.seen if "/resolve/" in p]


def test_a_download_that_breaks_goes_on_where_it_stopped():
    with playing({"a.bin": DATA}) as server:
        server.answers = [("cut", 100_000), ("cut", 50_000), ("cut", 0)]
        check(fetched() == DATA, "three broken connections")
        check(ranges(server) == [None, "bytes=100000-", "bytes=150000-", "bytes=150000-"], f"ranges {ranges(server)}")
        count = len(server.seen)
        check(fetched() == DATA and len(server.seen) == count + 1, "what is there is not downloaded again")
    with playing({"a.bin": DATA}) as server:  # a process that was killed left a part
        folder = hub.cache_folder(REPOSITORY, COMMIT)
        for part, want in ((DATA[:70_000], ["bytes=70000-"]), (DATA, []), (DATA + b"x", [None])):
            for name in os.listdir(folder):
                os.remove(os.path.join(folder, name))
            with open(os.path.join(folder, "a.bin.part"), "wb") as f:
                f.write(part)
            server.seen.clear()
            check(fetched() == DATA and ranges(server) == want, f"a part of {len(part)} bytes: {ranges(server)}")
            check(os.listdir(folder) == ["a.bin"], f"left {os.listdir(folder)}")
    with playing({"a.bin": DATA}, ranges=False) as server:
        server.answers = [("cut", 100_000)]
        check(fetched() == DATA, "a server without ranges")


def test_answers_that_pass_are_waited_for_and_others_explained():
    with playing({"a.bin": DATA}) as server:
        server.answers = [503, 429, 500, 502, 504]
        check(fetched() == DATA and server.pauses == [0] * 5, f"passing answers, pauses {server.pauses}")
    with playing({"a.bin": DATA}) as server:
        server.answers = [503] * 99
        said = fetched()
        check("503" in said and "run this again" in said and len(ranges(server)) == hub.ATTEMPTS, f"503 for ever: {said}, {len(ranges(server))} requests")
    for code, text in ((401, "HF_TOKEN"), (403, "licence"), (404, "404")):
        with playing({"a.bin": DATA}) as server:
            server.answers = [code]
            said = fetched()
            check(isinstance(said, str) and text in said and len(ranges(server)) == 1, f"{code}: {said!r}")
    with playing({}) as server:
        server.close()
        said = fetched()
        check("cannot be downloaded" in said and server.pauses == [1, 2, 4, 8, 16], f"no server: {said}, {server.pauses}")
        os.environ["HF_ENDPOINT"] = "http://hub.invalid"
        said = fetched()
        check("hub.invalid" in said, f"no network: {said}")


def test_what_is_not_as_the_hub_says_is_removed():
    with playing({"a.bin": DATA}, lie={"a.bin": "0" * 64}):
        said = fetched()
        check("sha256" in said and os.listdir(hub.cache_folder(REPOSITORY, COMMIT)) == [], f"a wrong sha256: {said}")
    with playing({"a.bin": DATA}) as server:
        folder = hub.cache_folder(REPOSITORY, COMMIT)
        with open(os.path.join(folder, "a.bin.part"), "wb") as f:
            f.write(b"x" * 1000)
        said = fetched()
        check("sha256" in said and fetched() == DATA, f"a part of something else: {said}")
        check("holds no file '../a.bin'" in fetched("../a.bin") and "holds no file 'b'" in fetched("b"), "names that are not there")
        server.files = {"../../x": DATA}
        check("holds no file" in fetched("../../x"), "a name that leads elsewhere")


def test_token_redirect_and_proxy():
    with playing({"a.bin": DATA}) as server:
        cdn = Server(server.files)
        server.elsewhere, os.environ["HF_TOKEN"] = cdn.address, "hf_secret"
        check(fetched() == DATA, "sent from elsewhere")
        check(all(h.get("Authorization") == "Bearer hf_secret" for _, h in server.seen), "the hub gets the token")
        check(cdn.seen and all("Authorization" not in h for _, h in cdn.seen), "another server does not")
        cdn.close()
    with playing({"a.bin": DATA}) as server:
        os.environ.update(http_proxy=server.address, HF_ENDPOINT="http://hub.invalid")
        check(fetched() == DATA and all(p.startswith("http://hub.invalid/") for p, _ in server.seen), "through a proxy")


def repository_files(seed):
    write_safetensors("hub.safetensors", hf_tensors(weights(seed)))
    with open("hub.safetensors", "rb") as f:
        return {"README.md": b"x", "config.json": json.dumps(hf_json()).encode(), "model.safetensors": f.read()}


def test_the_converter_downloads_by_itself():
    """The program, as it is called: without huggingface_hub, and by a Python without numpy (-S) that finds the one that has it."""
    os.makedirs("without", exist_ok=True)
    with open("without/huggingface_hub.py", "w") as f:
        f.write("raise ImportError")
    with playing(repository_files(4)) as server:
        server.answers = [("cut", 10)]
        for flags, says in (([], None), (["-S"], "has no numpy; going on with")):
            done = subprocess.run([sys.executable, *flags, os.path.join(DEV, "convert.py"), REPOSITORY, "-o", "out.bin"], capture_output=True, text=True,
                                  env=dict(os.environ, PYTHONPATH="without", PYTHON=sys.executable))
            check(done.returncode == 0 and os.path.exists("out.bin") and (not says or says in done.stderr), f"{flags}: exit {done.returncode}, {done.stderr[-500:]}")
            os.remove("out.bin")
    done = subprocess.run([sys.executable, "-S", os.path.join(DEV, "convert.py"), "--list"], capture_output=True, text=True, env=dict(os.environ, CLIPC_STARTED_AGAIN="1"))
    check(done.returncode == 2 and done.stderr.count("\n") == 1 and "dev/setup.sh" in done.stderr and "Traceback" not in done.stderr, f"no numpy anywhere: {done.stderr}")


if __name__ == "__main__":
    sys.exit(checkpoint_files.run_tests(globals()))
