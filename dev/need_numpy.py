"""Imported first by a script that needs numpy: where this Python has none, the script is started again with
one that has (dev/setup.sh finds it, as for the Makefile), or ends with the line that installs it."""
import os
import subprocess
import sys

try:
    import numpy  # noqa: F401
except ImportError as error:
    name = os.path.basename(sys.argv[0])
    setup = os.path.join(os.path.dirname(os.path.abspath(__file__)), "setup.sh")
    found = subprocess.run([setup, "--python"], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    python = found.stdout.strip()
    if found.returncode or os.environ.get("CLIPC_STARTED_AGAIN"):
        print(f"{name}: needs numpy, which {sys.executable} does not have ({error}); install it with: "
              f"{setup} (on Debian: apt-get install -y python3-numpy)", file=sys.stderr)
        sys.exit(2)
    print(f"{name}: {sys.executable} has no numpy; going on with {python} ({setup} installs what is missing)",
          file=sys.stderr)
    os.environ["CLIPC_STARTED_AGAIN"] = "1"
    sys.stderr.flush()
    os.execvp(python, [python, *sys.argv])
