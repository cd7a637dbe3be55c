"""Runs a program under ptrace: lists the system calls with which it changes files, and kills it before one of them or lets one fail.

Linux on x86-64 and ARM64; a call can be made to fail on x86-64 only. available() tells whether tracing works here.
"""
import ctypes
import errno
import os
import platform
import signal
import struct

TRACEME, POKEUSER, CONT, SETOPTIONS, GET_SYSCALL_INFO = 0, 6, 7, 0x4200, 0x420e
OPTIONS = 0x100000 | 0x80 | 8 | 4 | 2  # EXITKILL, TRACESECCOMP, TRACECLONE, TRACEVFORK, TRACEFORK
WALL = 0x40000000
MACHINE = platform.machine()
NUMBERS = {"x86_64": {1: "write", 18: "pwrite", 20: "writev", 77: "ftruncate", 257: "open", 74: "fsync", 75: "fsync", 82: "rename", 264: "rename", 316: "rename", 86: "link", 265: "link",
                      87: "unlink", 263: "unlink", 83: "mkdir", 258: "mkdir"},
           "aarch64": {64: "write", 68: "pwrite", 66: "writev", 46: "ftruncate", 56: "open", 82: "fsync", 83: "fsync", 38: "rename", 276: "rename", 37: "link", 35: "unlink", 34: "mkdir"}}
CALLS = NUMBERS.get(MACHINE, {})
CAN_FAIL = MACHINE == "x86_64"
ORIG_RAX, RAX, MASK = 15 * 8, 10 * 8, 0xffffffffffffffff  # places in struct user

libc = ctypes.CDLL(None, use_errno=True)
libc.ptrace.restype = ctypes.c_long
libc.prctl.argtypes = [ctypes.c_int] + 4 * [ctypes.c_void_p]
libc.ptrace.argtypes = [ctypes.c_long, ctypes.c_long, ctypes.c_void_p, ctypes.c_void_p]


def ptrace(request, pid, address=0, data=0):
    result = libc.ptrace(request, pid, address, data)
    if result < 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    return result


def stop_at_calls():
    """From now on this process, which is traced, stops before each of CALLS, and at no other call (a filter of seccomp)."""
    jump = [struct.pack("HBBI", 0x15, len(CALLS) - i, 0, number) for i, number in enumerate(CALLS)]  # equal: to the last instruction
    code = b"".join([struct.pack("HBBI", 0x20, 0, 0, 0)] + jump + [struct.pack("HBBI", 6, 0, 0, 0x7fff0000), struct.pack("HBBI", 6, 0, 0, 0x7ff00000)])
    code = ctypes.create_string_buffer(code, len(code))
    program = ctypes.create_string_buffer(struct.pack("HxxxxxxP", len(code) // 8, ctypes.addressof(code)), 16)
    no_new_privileges, set_seccomp = 38, 22
    if libc.prctl(no_new_privileges, 1, 0, 0, 0) or libc.prctl(set_seccomp, 2, ctypes.addressof(program), 0, 0):
        os._exit(125)


def start(arguments, env, cwd, output):
    """A child that is traced from its first instruction on; stdout and stderr go to the file `output`."""
    pid = os.fork()
    if pid:
        os.waitpid(pid, 0)
        ptrace(SETOPTIONS, pid, 0, OPTIONS)
        return pid
    try:
        os.chdir(cwd)
        for fd in (1, 2):
            os.dup2(os.open(output, os.O_WRONLY | os.O_CREAT | os.O_APPEND), fd)
        ptrace(TRACEME, 0)
        os.kill(os.getpid(), signal.SIGSTOP)
        stop_at_calls()
        os.execve(arguments[0], arguments, env)
    finally:
        os._exit(126)


def file_of(pid, fd):
    try:
        return os.readlink(f"/proc/{pid}/fd/{fd}")
    except OSError:
        return ""


def changes_file(pid, name, arguments, inside):
    """Does a call with these arguments change a file below the folder `inside`, as far as its descriptor tells?"""
    if name in ("write", "pwrite", "writev", "ftruncate", "fsync"):
        return file_of(pid, ctypes.c_int(arguments[0] & 0xffffffff).value).startswith(inside)
    return name != "open" or arguments[2] & (os.O_CREAT | os.O_WRONLY | os.O_RDWR)


def trace(arguments, env, inside, output, cwd=".", kill_at=None, fail=None):
    """Runs it; -> its exit code (negative: a signal) and the names of the calls, in order, that change files below `inside`.

    kill_at: the index of the call before which it is killed; fail(index, name): the errno with which this call fails, or 0
    """
    inside = os.path.realpath(inside)
    first = start(list(map(str, arguments)), env, cwd, output)
    calls, code = [], None
    info = ctypes.create_string_buffer(88)
    ptrace(CONT, first)
    while True:
        try:
            pid, status = os.waitpid(-1, WALL)
        except ChildProcessError:
            return code, calls
        if os.WIFEXITED(status) or os.WIFSIGNALED(status):
            if pid == first:
                code = os.WEXITSTATUS(status) if os.WIFEXITED(status) else -os.WTERMSIG(status)
            continue
        try:
            if status >> 16 == 7:  # PTRACE_EVENT_SECCOMP: before one of CALLS
                ptrace(GET_SYSCALL_INFO, pid, len(info), ctypes.addressof(info))
                name = CALLS[struct.unpack_from("<Q", info.raw, 24)[0]]
                if changes_file(pid, name, struct.unpack_from("<6Q", info.raw, 32), inside):
                    if kill_at == len(calls):
                        os.kill(first, signal.SIGKILL)
                    error = fail and fail(len(calls), name)
                    if error:
                        ptrace(POKEUSER, pid, ORIG_RAX, -1 & MASK)  # no call
                        ptrace(POKEUSER, pid, RAX, -error & MASK)
                    calls.append(name)
            new = status >> 16 or os.WSTOPSIG(status) in (signal.SIGSTOP, signal.SIGTRAP)  # a new thread, or exec
            ptrace(CONT, pid, 0, 0 if new else os.WSTOPSIG(status))
        except OSError as e:
            if e.errno != errno.ESRCH:  # killed meanwhile
                raise


def available():
    if not CALLS:
        return False
    try:
        code, calls = trace(["/bin/sh", "-c", ": > /dev/null"], dict(os.environ), "/", os.devnull)
        return code == 0 and bool(calls)
    except OSError:
        return False
