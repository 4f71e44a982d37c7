"""A process confines itself: called in a child process before any code of an answer runs.

On Linux the kernel's Landlock closes the file system and a seccomp filter the network, processes,
signals to others and changes of files' rights; neither needs root or a program that is installed.
Elsewhere only resource limits hold.
"""

import ctypes
import os
import platform
import resource
import signal
import struct
import sys
from collections.abc import Iterable
from pathlib import Path

MEMORY, FILE_SIZE, OPEN_FILES = 512 << 20, 1 << 20, 64
_NO_NEW_PRIVS, _SECCOMP, _PARENT_DEATH = 38, 22, 1  # prctl(2)
_LANDLOCK_CREATE, _LANDLOCK_ADD, _LANDLOCK_ENFORCE = 444, 445, 446  # the same on all machines
_READ_FILE, _READ_DIR, _WRITE_FILE = 1 << 2, 1 << 3, 1 << 1
_REMOVE_FILE, _MAKE_FILE, _TRUNCATE = 1 << 5, 1 << 8, 1 << 14
_RIGHTS = {1: 13, 2: 14, 3: 15, 4: 15}  # bits of rights on files by version of Landlock; then 16
_CLONE_THREAD = 0x10000
_ARCHITECTURES = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}  # as <linux/audit.h> names them
_X32 = 0x40000000  # x86-64's other table of calls begins here
_REFUSED = {  # call: its number on x86-64 and on AArch64, None where there is none
    # processes and programs; threads are allowed by an exception below
    "clone": (56, 220), "fork": (57, None), "vfork": (58, None), "execve": (59, 221),
    "execveat": (322, 281),
    # network, and what outlives a process
    "socket": (41, 198), "socketpair": (53, 199), "connect": (42, 203), "bind": (49, 200),
    "listen": (50, 201), "accept": (43, 202), "accept4": (288, 242), "io_uring_setup": (425, 425),
    "shmget": (29, 194), "semget": (64, 190), "msgget": (68, 186), "mq_open": (240, 180),
    # other processes
    "ptrace": (101, 117), "process_vm_readv": (310, 270), "process_vm_writev": (311, 271),
    "kill": (62, 129), "tkill": (200, 130), "tgkill": (234, 131), "rt_sigqueueinfo": (129, 138),
    "rt_tgsigqueueinfo": (297, 240), "pidfd_open": (434, 434), "pidfd_send_signal": (424, 424),
    "pidfd_getfd": (438, 438), "setpriority": (141, 140), "sched_setaffinity": (203, 122),
    "sched_setscheduler": (144, 119), "sched_setparam": (142, 118), "sched_setattr": (314, 274),
    "ioprio_set": (251, 30), "prlimit64": (302, 261), "process_madvise": (440, 440),
    # what Landlock leaves open: rights, owners, times and attributes of files
    "chmod": (90, None), "fchmod": (91, 52), "fchmodat": (268, 53), "fchmodat2": (452, 452),
    "chown": (92, None), "fchown": (93, 55), "lchown": (94, None), "fchownat": (260, 54),
    "utime": (132, None), "utimes": (235, None), "futimesat": (261, None), "utimensat": (280, 88),
    "setxattr": (188, 5), "lsetxattr": (189, 6), "fsetxattr": (190, 7), "removexattr": (197, 14),
    "lremovexattr": (198, 15), "fremovexattr": (199, 16), "setxattrat": (463, 463),
    "removexattrat": (466, 466), "truncate": (76, 45), "flock": (73, 32),
    # the system itself
    "mount": (165, 40), "umount2": (166, 39), "pivot_root": (155, 41), "chroot": (161, 51),
    "open_tree": (428, 428), "move_mount": (429, 429), "fsopen": (430, 430), "unshare": (272, 97),
    "setns": (308, 268), "bpf": (321, 280), "perf_event_open": (298, 241), "keyctl": (250, 219),
    "add_key": (248, 217), "request_key": (249, 218), "userfaultfd": (323, 282),
    "open_by_handle_at": (304, 265), "inotify_init1": (294, 26), "fanotify_init": (300, 262),
    "reboot": (169, 142), "settimeofday": (164, 170), "clock_settime": (227, 112),
    "syslog": (103, 116), "seccomp": (317, 277),
}  # fmt: skip
_CLONE3 = 435  # said to be unknown, so that libc starts threads with clone, whose flags can be read


def confine(folder: Path, seconds: int, memory: int = MEMORY) -> None:
    """Leave this process CPU time, memory and one folder; where the system can, nothing else.

    Must be called with one thread, and after everything is imported that must not be missed.
    """
    _limit(seconds, memory)
    if not sys.platform.startswith("linux"):
        return
    libc = ctypes.CDLL(None, use_errno=True)
    libc.prctl(_PARENT_DEATH, signal.SIGKILL, 0, 0, 0)
    if os.getppid() == 1:  # the parent ended before that
        os._exit(1)
    _drop_capabilities(libc)
    libc.prctl(_NO_NEW_PRIVS, 1, 0, 0, 0)
    _close_files(libc, folder)
    if not _refuse_calls(libc):
        resource.setrlimit(resource.RLIMIT_NPROC, (0, 0))


def missing() -> list[str]:
    """What of the confinement this system does not have, in words."""
    if not sys.platform.startswith("linux"):
        return ["a file system of its own", "no network", "no other processes"]
    libc = ctypes.CDLL(None, use_errno=True)
    found = []
    if libc.syscall(_LANDLOCK_CREATE, None, 0, 1) < 1:
        found.append("a file system of its own (the kernel has no Landlock)")
    can_filter = libc.prctl(21, 0, 0, 0, 0) >= 0  # PR_GET_SECCOMP
    if not can_filter or platform.machine() not in _ARCHITECTURES:
        found.append("no network and no other processes (no seccomp filter for this machine)")
    return found


def _limit(seconds: int, memory: int) -> None:
    limits = {
        resource.RLIMIT_CPU: seconds,
        resource.RLIMIT_AS: memory,
        resource.RLIMIT_FSIZE: FILE_SIZE,
        resource.RLIMIT_NOFILE: OPEN_FILES,
        resource.RLIMIT_CORE: 0,
    }
    for limit, most in limits.items():
        _, hard = resource.getrlimit(limit)
        most = most if hard == resource.RLIM_INFINITY else min(most, hard)
        try:
            resource.setrlimit(limit, (most, most))
        except (ValueError, OSError):
            if sys.platform.startswith("linux"):  # macOS has no limit on memory
                raise


def _drop_capabilities(libc: ctypes.CDLL) -> None:
    """So that root is a user like any other."""
    header = struct.pack("Ii", 0x20080522, 0)  # version 3, this process
    libc.capset(header, bytes(24))


def _close_files(libc: ctypes.CDLL, folder: Path) -> None:
    """Only Python's own files can be read, and only files directly in `folder` written."""
    version = libc.syscall(_LANDLOCK_CREATE, None, 0, 1)
    if version < 1:
        return
    handled = (1 << _RIGHTS.get(version, 16)) - 1
    rules = libc.syscall(_LANDLOCK_CREATE, struct.pack("Q", handled), 8, 0)
    if rules < 0:
        raise OSError(ctypes.get_errno(), "landlock_create_ruleset")
    for path in _python_folders():
        _allow(libc, rules, path, handled & (_READ_FILE | _READ_DIR))
    written = _READ_FILE | _READ_DIR | _WRITE_FILE | _MAKE_FILE | _REMOVE_FILE | _TRUNCATE
    _allow(libc, rules, folder, handled & written)
    for device, rights in (("null", _READ_FILE | _WRITE_FILE), ("urandom", _READ_FILE)):
        _allow(libc, rules, Path("/dev", device), handled & rights)
    if libc.syscall(_LANDLOCK_ENFORCE, rules, 0):
        raise OSError(ctypes.get_errno(), "landlock_restrict_self")
    os.close(rules)


def _python_folders() -> Iterable[Path]:
    """Where Python, its packages and shared libraries are."""
    packages = {"site-packages", "dist-packages"}
    found = {Path(one) for one in sys.path if Path(one).name in packages}
    found |= {Path(os.__file__).parent, Path(sys.base_prefix, sys.platlibdir)}
    found |= {Path(one) for one in ("/lib", "/lib64", "/usr/lib", "/usr/lib64", "/usr/local/lib")}
    found |= {Path("/etc/ld.so.cache"), Path("/usr/share/zoneinfo"), Path("/etc/localtime")}
    return (path for path in found if path.exists())


def _allow(libc: ctypes.CDLL, rules: int, path: Path, rights: int) -> None:
    beneath = os.open(path, os.O_PATH | os.O_CLOEXEC)
    try:
        if not path.is_dir():
            rights &= ~(_READ_DIR | _MAKE_FILE | _REMOVE_FILE)
        if libc.syscall(_LANDLOCK_ADD, rules, 1, struct.pack("=Qi", rights, beneath), 0):
            raise OSError(ctypes.get_errno(), f"landlock_add_rule {path}")
    finally:
        os.close(beneath)


def _refuse_calls(libc: ctypes.CDLL) -> bool:
    """Install the filter of calls; False where it cannot be."""
    machine = platform.machine()
    if machine not in _ARCHITECTURES:
        return False
    program = _filter(_ARCHITECTURES[machine], 0 if machine == "x86_64" else 1)
    code = ctypes.create_string_buffer(program)
    header = struct.pack("HxxxxxxQ", len(program) // 8, ctypes.addressof(code))
    return bool(libc.prctl(_SECCOMP, 2, header, 0, 0) == 0)


def _filter(architecture: int, column: int) -> bytes:
    """A BPF program: refuse what `_REFUSED` names, but threads and a process's own limits."""
    load, equal, at_least, any_bit, end = 0x20, 0x15, 0x35, 0x45, 0x06
    allow, kill = 0x7FFF0000, 0x80000000
    refuse, unknown = 0x00050001, 0x00050026  # EPERM, ENOSYS
    lines = [(load, 0, 0, 4), (equal, 1, 0, architecture), (end, 0, 0, kill), (load, 0, 0, 0)]
    if column == 0:
        lines += [(at_least, 0, 1, _X32), (end, 0, 0, refuse)]
    lines += [(equal, 0, 1, _CLONE3), (end, 0, 0, unknown)]
    for name, numbers in _REFUSED.items():
        number = numbers[column]
        if number is None:
            continue
        if name == "clone":  # its first argument's lower half has the flags
            lines += [(equal, 0, 4, number), (load, 0, 0, 16), (any_bit, 0, 1, _CLONE_THREAD)]
            lines += [(end, 0, 0, allow), (end, 0, 0, refuse)]
        elif name == "prlimit64":  # of process 0, which is itself
            lines += [(equal, 0, 4, number), (load, 0, 0, 16), (equal, 0, 1, 0)]
            lines += [(end, 0, 0, allow), (end, 0, 0, refuse)]
        else:
            lines += [(equal, 0, 1, number), (end, 0, 0, refuse)]
    lines.append((end, 0, 0, allow))
    return b"".join(struct.pack("HBBI", *line) for line in lines)
