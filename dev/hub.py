"""Downloads from the model hub for dev/convert.py, by Python's own urllib: progress, retries, a download that
was cut off goes on where it stopped, and the sha256 that the hub gives is compared.

From the environment: HF_ENDPOINT (another address of the hub), HF_TOKEN (or the file that `hf auth login`
writes), http_proxy, https_proxy and no_proxy, XDG_CACHE_HOME (what is downloaded stays in clip.c/ there).
"""
import email.utils
import errno
import fcntl
import hashlib
import http.client
import json
import os
import re
import socket
import ssl
import sys
import time
import urllib.error
import urllib.parse
import urllib.request

from checkpoints import Refused

HUB = "https://huggingface.co"
TIMEOUT = 30  # seconds without a byte
ATTEMPTS = 6  # in a row that bring nothing
LONGEST_WAIT = 60  # seconds between two attempts, even if the server asks for more
LARGEST_LISTING = 1 << 26  # bytes
CHUNK = 1 << 20
PASSING = (408, 425, 429, 500, 502, 503, 504)  # codes of answers after which another attempt may succeed


class Failed(Exception):
    """An attempt that may succeed later; wait: for how many seconds the server asks."""

    def __init__(self, why, wait=None):
        super().__init__(why)
        self.wait = wait


# ---------------------------------------------------------------- requests

def endpoint():
    return os.environ.get("HF_ENDPOINT", "").rstrip("/") or HUB


def token():
    """The user's token, or None."""
    given = os.environ.get("HF_TOKEN") or os.environ.get("HUGGING_FACE_HUB_TOKEN")
    home = os.environ.get("HF_HOME") or os.path.join(os.path.expanduser("~"), ".cache", "huggingface")
    path = os.environ.get("HF_TOKEN_PATH") or os.path.join(home, "token")
    if not given and os.path.isfile(path):
        with open(path, encoding="utf-8", errors="replace") as f:
            given = f.read(1000)
    given = (given or "").strip()
    return given if re.fullmatch(r"[!-~]+", given) else None  # a header holds nothing else


class Redirects(urllib.request.HTTPRedirectHandler):
    """The hub sends large files from elsewhere: the token stays with the hub, and https stays https."""

    def redirect_request(self, request, answer, code, message, headers, address):
        new = super().redirect_request(request, answer, code, message, headers, address)
        old, to = (urllib.parse.urlsplit(r.full_url) for r in (request, new))
        if old.scheme == "https" and to.scheme != "https":
            raise Refused(f"{request.full_url}: leads to {address}, which is not https")
        if (old.scheme, old.netloc) != (to.scheme, to.netloc):
            new.headers.pop("Authorization", None)
            new.unredirected_hdrs.pop("Authorization", None)
        return new


def wait_of(headers):
    """Retry-After: seconds or a date; -> seconds or None"""
    text = (headers.get("Retry-After") or "").strip()
    if text.isdigit():
        return int(text[:6])
    try:
        return max(0, email.utils.parsedate_to_datetime(text).timestamp() - time.time())
    except (TypeError, ValueError):
        return None


def explained(repository, error):
    """What an answer with an error code means: Failed where another attempt may help, else Refused."""
    code = error.code
    if code in PASSING:
        return Failed(f"the server answers {code} {error.reason}", wait_of(error.headers))
    address = f"{endpoint()}/{repository}"
    if code in (401, 403):
        return Refused(f"{repository}: the hub answers {code}: it is not there, private, or its licence must "
                       f"be accepted at {address}; then set HF_TOKEN to a token of yours")
    return Refused(f"{repository}: the hub answers {code} {error.reason}; see {address}")


def opened(repository, url, offset=0):
    """-> the answer to a request; offset: from this byte on."""
    headers = {"User-Agent": "clip.c", "Accept-Encoding": "identity"}
    if token():
        headers["Authorization"] = f"Bearer {token()}"
    if offset:
        headers["Range"] = f"bytes={offset}-"
    try:
        return urllib.request.build_opener(Redirects).open(urllib.request.Request(url, headers=headers),
                                                           timeout=TIMEOUT)
    except urllib.error.HTTPError as e:
        if e.code == 416:
            return e
        raise explained(repository, e) from None
    except urllib.error.URLError as e:
        if isinstance(e.reason, ssl.SSLCertVerificationError):
            raise Refused(f"{url}: its certificate cannot be checked ({e.reason.verify_message}); on Debian "
                          "run: apt-get install -y ca-certificates") from None
        if isinstance(e.reason, socket.gaierror) and e.reason.errno != socket.EAI_AGAIN:
            raise Refused(f"{repository}: {urllib.parse.urlsplit(url).netloc} is not found; without a "
                          f"network, bring the files of {endpoint()}/{repository} in a folder, and give that "
                          "as IN") from None
        raise Failed(str(e.reason)) from None
    except (OSError, http.client.HTTPException) as e:
        raise Failed(str(e) or type(e).__name__) from None
    except ValueError as e:
        raise Refused(f"{url}: {e}; is HF_ENDPOINT an address?") from None


def with_attempts(what, attempt, say):
    """attempt() until it returns something; one that fails and brought nothing counts."""
    failures = 0
    while True:
        try:
            return attempt()
        except Failed as e:
            failures = 1 if getattr(e, "progress", False) else failures + 1
            if failures >= ATTEMPTS:
                raise Refused(f"{what}: cannot be downloaded ({' '.join(str(e).split())[:200]}); run this "
                              "again, and it goes on where it stopped") from None
            wait = min(LONGEST_WAIT, 2 ** (failures - 1) if e.wait is None else e.wait)
            say(f"{what}: {' '.join(str(e).split())[:200]}; again in {wait:.0f} s")
            time.sleep(wait)


# ---------------------------------------------------------------- progress

class Progress:
    """A bar on a terminal, else a line every ten seconds; none for what is there in less."""

    def __init__(self, name, size, start):
        self.name, self.size, self.first, self.shown = name, size, start, False
        self.begin = self.last = time.monotonic()
        self.terminal = sys.stderr.isatty()

    def show(self, done):
        now = time.monotonic()
        if now - self.last < (0.2 if self.terminal else 10) and not (self.shown and done == self.size):
            return
        self.last, self.shown = now, True
        rate = (done - self.first) / max(1e-3, now - self.begin)
        left = f", {(self.size - done) / rate:.0f} s left" if rate > 0 and done < self.size else ""
        share = f" of {self.size / 1e6:.1f} MB, {100 * done // self.size}%" if self.size else " MB"
        line = f"{self.name}: {done / 1e6:.1f}{share}, {rate / 1e6:.1f} MB/s{left}"
        print(f"\r{line}\033[K" if self.terminal else line, end="" if self.terminal else "\n",
              file=sys.stderr, flush=True)

    def end(self):
        if self.terminal and self.shown:
            print(file=sys.stderr)


# ---------------------------------------------------------------- a file

def check_answer(answer, offset, size, what):
    """-> the byte at which the answer begins: `offset`, or 0 where the server sends the whole file."""
    if answer.code == 206:
        found = re.fullmatch(r"bytes (\d+)-\d+/(\d+|\*)", answer.headers.get("Content-Range", ""))
        if not found or int(found[1]) != offset or (size and found[2] not in ("*", str(size))):
            raise Failed("the server sent another part than the one asked for")
        return offset
    length = answer.headers.get("Content-Length", "")
    if size and length.isdigit() and int(length) != size:
        raise Refused(f"{what}: the server announces {length} bytes, the hub says {size}; try again later")
    return 0


def receive(part, repository, url, size, what):
    """One request: appends to the file `part`, whose place is its end. Failed where it stops early."""
    offset = part.seek(0, os.SEEK_END)
    if size and offset > size:
        offset = part.truncate(0)
    if size and offset == size:
        return
    received = 0
    with opened(repository, url, offset) as answer:
        if answer.code == 416:  # it has fewer bytes than we have: not the same file
            part.truncate(0)
            raise Failed("the server has no such part")
        offset = check_answer(answer, offset, size, what)
        part.truncate(offset)
        part.seek(offset)
        progress = Progress(what, size, offset)
        try:
            while True:
                data = answer.read1(CHUNK)
                if not data:
                    break
                part.write(data)
                received += len(data)
                if size and offset + received > size:
                    raise Refused(f"{what}: the server sends more than the {size} bytes that the hub says")
                progress.show(offset + received)
            why = "the connection was closed"
        except (socket.timeout, ConnectionError, http.client.HTTPException, ssl.SSLError) as e:
            why = str(e) or type(e).__name__
        finally:
            progress.end()
        length = answer.headers.get("Content-Length", "")
    if (size and offset + received != size) or (not size and length.isdigit() and received != int(length)):
        failed = Failed(why)
        failed.progress = received > 0
        raise failed


def sha256_of(file):
    digest = hashlib.sha256()
    file.seek(0)
    for data in iter(lambda: file.read(CHUNK), b""):
        digest.update(data)
    return digest.hexdigest()


def download_file(repository, commit, entry, folder, say):
    """A file of the listing into the folder; what is there already whole is left. -> its path"""
    name, size = entry["name"], entry["size"]
    path, what = os.path.join(folder, name), f"{repository}/{name}"
    if os.path.isfile(path) and (not size or os.path.getsize(path) == size):
        return path
    url = f"{endpoint()}/{repository}/resolve/{commit}/{urllib.parse.quote(name)}"
    with open(path + ".part", "ab+") as part:
        try:
            fcntl.flock(part, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as e:
            if e.errno in (errno.EACCES, errno.EAGAIN):
                raise Refused(f"{path}.part: another process downloads it; wait for its end") from None
        with_attempts(what, lambda: receive(part, repository, url, size, what) or True, say)
        part.flush()
        found = sha256_of(part) if entry["sha256"] else None
        if found != entry["sha256"]:
            os.remove(path + ".part")
            raise Refused(f"{what}: what came has the sha256 {found[:16]}…, the hub says "
                          f"{entry['sha256'][:16]}…; it is removed, run this again")
        os.fsync(part.fileno())
        os.replace(path + ".part", path)
    return path


# ---------------------------------------------------------------- a repository

def listing(repository, say):
    """-> the commit, and name -> {name, size, sha256} of the files of a repository."""
    def ask():
        with opened(repository, f"{endpoint()}/api/models/{repository}?blobs=true") as answer:
            try:
                return answer.read(LARGEST_LISTING)
            except (OSError, http.client.HTTPException) as e:
                raise Failed(str(e) or type(e).__name__) from None
    files = {}
    try:
        told = json.loads(with_attempts(repository, ask, say))
        commit = str(told.get("sha") or "main")
        for file in told["siblings"]:
            lfs = file.get("lfs") or {}
            sha256, size = str(lfs.get("sha256") or ""), lfs.get("size") or file.get("size") or 0
            files[str(file["rfilename"])] = {
                "name": str(file["rfilename"]), "size": int(size),
                "sha256": sha256 if re.fullmatch(r"[0-9a-f]{64}", sha256) else None}
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        raise Refused(f"{repository}: what {endpoint()} says of it cannot be read; is it the hub?") from None
    if not re.fullmatch(r"[\w.-]+", commit) or commit.startswith("."):
        raise Refused(f"{repository}: the hub names a commit {commit[:40]!r}, which is none")
    return commit, files


def cache_folder(repository, commit):
    base = os.environ.get("XDG_CACHE_HOME") or os.path.join(os.path.expanduser("~"), ".cache")
    folder = os.path.join(base, "clip.c", *repository.split("/"), commit)
    os.makedirs(folder, exist_ok=True)
    return folder


def open_with_package(repository, package):
    """open_repository() by the package huggingface_hub, which has a cache of its own."""
    def call(function, *arguments):
        try:
            return function(repository, *arguments)
        except Exception as e:  # whatever the network and that library raise
            raise Refused(f"{repository}: cannot be downloaded ({' '.join(str(e).split())[:200]}); see "
                          f"{endpoint()}/{repository}") from None
    return call(package.list_repo_files), lambda name: call(package.hf_hub_download, name)


def open_repository(repository, say):
    """-> the names of its files, and fetch(name), which downloads one; -> its path. say(text): a line."""
    try:
        import huggingface_hub
    except ImportError:
        pass
    else:
        return open_with_package(repository, huggingface_hub)
    commit, files = listing(repository, say)
    folder = cache_folder(repository, commit)
    say(f"{repository}: goes to {folder}, from where you may delete it afterwards")

    def fetch(name):
        if name not in files or os.path.basename(name) != name:
            raise Refused(f"{repository}: holds no file {name[:80]!r}, which it needs")
        return download_file(repository, commit, files[name], folder, say)
    return list(files), fetch
