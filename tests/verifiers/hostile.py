"""Programs that try to get out of the sandbox. Each prints ESCAPED where it did, and what it was told where it did not."""

OUTSIDE = """
import sys
def attempt(what):
    try:
        got = what()
    except Exception as error:
        print("refused:", type(error).__name__, error)
    else:
        print("ESCAPED", repr(got)[:200])
"""

READING = """
import os
for path in PATHS:
    attempt(lambda: open(path, "rb").read(64) or "empty")
    attempt(lambda: os.listdir(os.path.dirname(path)))
"""

PROCESSES = """
import os
supervisor = os.getppid()
for pid in (PARENT, supervisor, 1):
    for name in ("environ", "mem", "maps", "root/etc/passwd", "cwd", "fd"):
        attempt(lambda: open(f"/proc/{pid}/{name}", "rb").read(1) or os.listdir(f"/proc/{pid}/{name}"))
"""

WRITING = """
import os, shutil
attempt(lambda: open(TARGET, "w").write("owned"))
attempt(lambda: open(TARGET, "r+").write("owned"))
attempt(lambda: os.truncate(TARGET, 0))
attempt(lambda: os.close(os.open(TARGET, os.O_RDONLY | os.O_TRUNC)))
attempt(lambda: os.unlink(TARGET))
attempt(lambda: os.rename(TARGET, "mine"))
attempt(lambda: os.link(TARGET, "mine"))
attempt(lambda: os.chmod(TARGET, 0o777) or "changed")
attempt(lambda: os.utime(TARGET, (1, 1)) or "changed")
attempt(lambda: os.setxattr(TARGET, "user.owned", b"1") or "changed")
attempt(lambda: os.chown(TARGET, os.getuid(), os.getgid()) or "changed")
attempt(lambda: open(os.path.join(os.path.dirname(TARGET), "new"), "w").close() or "made")
attempt(lambda: os.mkdir(os.path.join(os.path.dirname(TARGET), "folder")) or "made")
attempt(lambda: open("/dev/shm/counterplay-owned", "w").close() or "made")
attempt(lambda: open("/tmp/counterplay-owned", "w").close() or "made")
"""

LINKS = """
import os
os.symlink(TARGET, "link")
attempt(lambda: open("link").read())
attempt(lambda: open("link", "w").write("owned"))
os.symlink(os.path.dirname(TARGET), "folder")
attempt(lambda: os.listdir("folder"))
attempt(lambda: open("folder/new", "w").close() or "made")
os.symlink("/", "root")
attempt(lambda: open("root/etc/passwd").read())
attempt(lambda: open("../" * 40 + "etc/passwd").read())
attempt(lambda: open("/proc/self/root/etc/passwd").read())
attempt(lambda: os.mknod("disk", 0o60600, os.makedev(254, 0)) or "made")
attempt(lambda: os.chroot(".") or "rooted")
"""

NETWORK = """
import socket, struct
attempt(lambda: socket.create_connection(("127.0.0.1", PORT), timeout=2).send(b"out"))
attempt(lambda: socket.socket(socket.AF_INET, socket.SOCK_DGRAM).sendto(b"out", ("127.0.0.1", PORT)))
attempt(lambda: socket.socket(socket.AF_INET6, socket.SOCK_DGRAM).sendto(b"out", ("::1", PORT)))
attempt(lambda: socket.socket(socket.AF_UNIX).connect(SOCKET) or "connected")
attempt(lambda: socket.socket(socket.AF_UNIX).connect(ABSTRACT) or "connected")
attempt(lambda: socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM).sendto(b"out", DATAGRAM))
attempt(lambda: socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)[0].sendto(b"out", DATAGRAM))
attempt(lambda: socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 0).bind((0, 0)) or "bound")
attempt(lambda: socket.socket(socket.AF_PACKET, socket.SOCK_RAW).fileno())
attempt(lambda: socket.getaddrinfo("example.org", 80))
left, right = socket.socketpair()
left.send(b"inside")
print("pair:", right.recv(6).decode())
"""

KILLING = """
import os, signal, resource, fcntl, ctypes
for pid in (PARENT, os.getppid(), -1, 0, -PARENT):
    attempt(lambda: os.kill(pid, signal.SIGTERM) or f"signalled {pid}") if pid != 0 and pid != -1 else None
attempt(lambda: signal.pidfd_send_signal(os.pidfd_open(PARENT), signal.SIGTERM) or "signalled")
attempt(lambda: resource.prlimit(PARENT, resource.RLIMIT_NOFILE, (8, 8)))
attempt(lambda: os.setpriority(os.PRIO_PROCESS, PARENT, 19) or "slowed")
attempt(lambda: os.sched_setaffinity(PARENT, {0}) or "moved")
read, write = os.pipe()
attempt(lambda: fcntl.fcntl(read, fcntl.F_SETOWN, PARENT) or "owned")
"""

TRACING = """
import ctypes, os
libc = ctypes.CDLL(None, use_errno=True)
def call(number, *arguments):
    result = libc.syscall(number, *[ctypes.c_long(argument) for argument in arguments])
    if result < 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    return result
for pid in (PARENT, os.getppid()):
    attempt(lambda: call(PTRACE, 16, pid, 0, 0))
    buffer = ctypes.create_string_buffer(8)
    vector = (ctypes.c_long * 2)(ctypes.addressof(buffer), 8)
    attempt(lambda: call(READV, pid, ctypes.addressof(vector), 1, ctypes.addressof(vector), 1, 0))
for name, number, arguments in CALLS:
    attempt(lambda: call(number, *arguments))
"""

SECRETS = """
import os
attempt(lambda: os.environ["COUNTERPLAY_TEST_SECRET"])
attempt(lambda: open("/proc/self/environ", "rb").read().index(b"hunter2"))
for fd in range(3, 64):
    try:
        os.fstat(fd)
    except OSError:
        continue
    print("ESCAPED: open descriptor", fd)
print("names:", sorted(os.environ))
"""

DAEMON = """
import os, sys, time
if os.fork() == 0:
    os.setsid()
    if os.fork() == 0:
        for fd in range(3):
            os.close(fd)
        for name in range(600):
            with open(MARK, "w") as file:
                file.write(str(name))
            time.sleep(0.05)
    os._exit(0)
for _ in range(200):
    if os.path.exists(MARK):
        break
    time.sleep(0.02)
print("daemon", os.path.exists(MARK))
"""

FORK_BOMB = """
import os
while True:
    try:
        os.fork()
    except OSError:
        pass
"""

FORK_AND_SETSID_BOMB = """
import os
while True:
    try:
        if os.fork() == 0:
            os.setsid()
    except OSError:
        pass
"""

THREADS = """
import threading, time
while True:
    try:
        threading.Thread(target=time.sleep, args=(30,)).start()
    except RuntimeError:
        pass
"""

ZOMBIES = """
import os, time
for _ in range(30):
    if os.fork() == 0:
        os._exit(0)
print("left")
"""

ENDLESS = "while True: pass"
SLEEPING = """
import signal, time
for number in range(1, 32):
    try:
        signal.signal(number, signal.SIG_IGN)
    except (OSError, ValueError):
        pass
time.sleep(600)
"""
TEN_GIGABYTES = "held = bytearray(10 << 30)\nprint(len(held))"
GROWING = "held = []\nwhile True: held.append(bytearray(b'x') * (1 << 20))"
GROWING_FAMILY = """
import os, time
for _ in range(2):
    os.fork()
held = []
while len(held) < 100:
    held.append(bytearray(b'x') * (1 << 20))
time.sleep(60)
"""
SHOUTING = "import sys\nwhile True: sys.stdout.write('x' * 65536)"
COMPLAINING = "import sys\nwhile True: sys.stderr.write('x' * 65536)"
HUGE_FILE = "with open('big', 'wb') as file:\n    while True: file.write(b'x' * (1 << 20))"
SPARSE_FILE = "import os\nos.ftruncate(os.open('big', os.O_CREAT | os.O_RDWR), 1 << 34)"
MANY_FILES = "n = 0\nwhile True:\n    n += 1\n    open(f'f{n}', 'wb').write(b'x' * 65536)"
DEEP_FOLDERS = """
import os
for n in range(60):
    os.mkdir("d" * 200)
    os.chdir("d" * 200)
os.symlink(TARGET, "link")
open("file", "w").close()
os.chdir("/")
print("deep")
"""
SHUT_FOLDERS = """
import os
os.makedirs("a/b/c")
open("a/b/c/file", "w").close()
for path in ("a/b/c/file", "a/b/c", "a/b", "a"):
    try:
        os.chmod(path, 0)
    except PermissionError:
        pass
print("shut")
"""
