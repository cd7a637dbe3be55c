#!/usr/bin/env python3
"""Where shards come from: a folder, * in a name, http:// from a server that breaks connections off, s3:// with a stand-in for aws; and shards that are
not there."""
import http.server
import io
import os
import shutil
import stat
import sys
import tarfile
import threading

from checks import check
from train_runs import main, read, refused, run, write

SHARDS, EACH = 4, 4
TRAIN = ["--model", "words.json", "--batch-size", 4, "--epochs", 1, "--save-frequency", 0]
FOUND = f"{SHARDS * EACH} samples found, all used"


def make_shards(folder):
    os.makedirs(folder, exist_ok=True)
    images = sorted(os.listdir("shapes/images"))
    for shard in range(SHARDS):
        with tarfile.open(f"{folder}/{shard:05d}.tar", "w", format=tarfile.USTAR_FORMAT) as tar:
            for i in range(shard * EACH, (shard + 1) * EACH):
                for name, data in ((f"{i:05d}.png", read(f"shapes/images/{images[i]}")), (f"{i:05d}.txt", f"shape {i}".encode())):
                    member = tarfile.TarInfo(name)
                    member.size = len(data)
                    tar.addfile(member, io.BytesIO(data))


class Server(http.server.BaseHTTPRequestHandler):
    """The files of shards/; every third connection ends in the middle of one."""
    served = 0

    def do_GET(self):
        Server.served += 1
        path = "shards/" + os.path.basename(self.path.split("?")[0])
        if not os.path.exists(path):
            self.send_error(404)
            return
        data = read(path)
        self.send_response(200)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data[:len(data) // 2] if Server.served % 3 == 0 else data)

    def log_message(self, *arguments):
        pass


def trained(name, spec, *more, **how):
    code, out, err = run(*TRAIN, "--train-data", spec, "--name", name, *more, **how)
    check(code == 0 and FOUND in out and not err, f"{spec}: exit {code}, {out[-300:]!r}, {err[-400:]!r}")
    return next((line.split("loss")[1].split()[0] for line in out.splitlines() if line.startswith("step 4")), out)


def test_folders_and_patterns_of_shards():
    make_shards("shards")
    loss = trained("braces", "shards/{00000..00003}.tar")
    check(trained("folder", "shards") == loss, "a folder of shards: another loss")
    check(trained("pattern", "shards/0*.tar") == loss, "a pattern: another loss")
    refused("no shards there", *TRAIN, "--train-data", "shards/9*.tar")
    shutil.copytree("shards", "both")
    write("both/a.png", b"x")
    refused("holds both tar shards and images", *TRAIN, "--train-data", "both")


def test_missing_shards():
    make_shards("shards")
    refused("no such shard", *TRAIN, "--train-data", "shards/{00000..00007}.tar")
    code, out, err = run(*TRAIN, "--train-data", "shards/{00000..00007}.tar", "--skip-missing-shards", "--name", "skip")
    check(code == 0 and FOUND in out and "4 shards are not there" in out and "00004.tar" in out, f"exit {code}, {out[-500:]!r}, {err!r}")


def test_shards_from_a_server_that_breaks_off():
    if not shutil.which("curl"):
        return
    make_shards("shards")
    loss = trained("local", "shards/{00000..00003}.tar")
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Server)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    url = f"http://127.0.0.1:{server.server_port}"
    os.environ["no_proxy"] = "127.0.0.1"
    check(trained("http", url + "/{00000..00003}.tar") == loss, "over http: another loss")
    check(Server.served > SHARDS, f"{Server.served} connections: none was broken off")
    trained("query", url + "/{00000..00003}.tar?it's=$(id)")
    refused("/00004.tar: it is not there", *TRAIN, "--train-data", url + "/{00000..00009}.tar", code=1)
    code, out, err = run(*TRAIN, "--train-data", url + "/{00000..00005}.tar", "--skip-missing-shards", "--name", "skip")
    check(code == 0 and FOUND in out and "2 shards are not there" in out, f"exit {code}, {out[-500:]!r}, {err!r}")
    server.shutdown()


def test_shards_from_s3():
    make_shards("shards")
    os.makedirs("bin", exist_ok=True)
    # fails every second time
    write("bin/aws", '#!/bin/sh\n[ "$1 $2" = "s3 cp" ] || exit 9\necho x >> calls\n[ $(($(wc -l < calls) % 2)) = 0 ] || { echo broken >&2; exit 1; }\ncp "shards/${4##*/}" "$5"\n')
    os.chmod("bin/aws", os.stat("bin/aws").st_mode | stat.S_IXUSR)
    path = os.environ["PATH"]
    os.environ["PATH"] = os.path.abspath("bin") + ":" + path
    trained("s3", "s3://bucket/folder/{00000..00003}.tar")
    os.environ["PATH"] = path
    check(read("calls").count(b"x") == 2 * SHARDS, f"{read('calls')!r}")


if __name__ == "__main__":
    sys.exit(main(globals()))
