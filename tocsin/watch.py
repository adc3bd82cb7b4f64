"""
What `tocsin run` becomes for a program that is not Python: its parent, which sees how it ends.

Run as a script by a bare interpreter (`python -I -S watch.py PROGRAM …`) with a few modules of the standard
library: it takes a few megabytes for as long as the program runs, and loads the rest of tocsin only for a
death that is an error. For the program nothing changes but that its stderr is a pipe: stdin, stdout and
other descriptors are its own, signals come through, and its end is our end.
"""

from __future__ import annotations

import _thread
import os
import select
import signal
import sys
import time
from collections.abc import Callable, Collection, Sequence
from typing import Final, NoReturn

FORWARDED: Final = frozenset(
    {signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT, signal.SIGUSR1, signal.SIGUSR2}
)
KEPT_BYTES: Final = 16 * 1024
"""How much of the end of stderr is kept."""

_OF_TERMINALS = (signal.SIGINT, signal.SIGQUIT)  # Ctrl-C and Ctrl-\\
_REPORT_S = 6.0
_DRAIN_S = 2.0
_READER_S = 10.0
_PIPE_BYTES = 2**20  # the most that a pipe may hold: what the dead program wrote is not more
_PR_SET_PDEATHSIG = 1


def watch(command: Sequence[str], path: Sequence[str]) -> NoReturn:
    """
    Run a program to its end, tell of it where it is an error, and end in the same way.

    Args:
        path: where the rest of tocsin and its libraries are imported from, when there is something to tell.
    """
    told = os.environ.get("TOCSIN_TOLD", "")
    _remove(told)  # from a process that had our number before
    oom_kills, began_ns = _oom_kills(), time.time_ns()
    relay = Relay() if _is_open(2) else None
    try:
        pid, mask = _start(command, relay)
    except OSError as problem:
        _say(f"{command[0]!r} cannot be run: {problem.strerror}")
        os._exit(126)
    if relay is not None:
        relay.start()
    status, asked = _wait(pid)
    code = os.waitstatus_to_exitcode(status)
    stderr = relay.finish(_DRAIN_S) if relay is not None else b""

    def report() -> None:
        sys.path[:] = path
        from tocsin.deaths import Death, report  # noqa: PLC0415  (not in the memory of who only waits)

        report(
            Death(
                command=tuple(command),
                pid=pid,
                code=code,
                asked=tuple(asked),
                began_ns=began_ns,
                ended_ns=time.time_ns(),
                oom_kills=_difference(oom_kills, _oom_kills()),
                stderr=stderr,
            ),
            told,
        )

    if is_error(code, asked):
        _within(_REPORT_S, report)
    _remove(told)
    if relay is not None:
        relay.let_go(_READER_S)
    _end_as(code, mask)


def is_error(code: int, asked: Collection[int]) -> bool:
    """
    Whether an end is an error: any but exit code 0, and what somebody asked for.

    Args:
        code: the exit code, or the negative number of the signal that killed it.
        asked: the signals that came for it; a shell says 143 for a SIGTERM.
    """
    signal_number = -code if code < 0 else code - 128
    return code != 0 and signal_number not in asked


class Relay:
    """The program's stderr on its way to ours: byte for byte, at once, and its end is kept."""

    def __init__(self) -> None:
        self._from, self.into = os.pipe()
        self._stopped, self._stop = os.pipe()
        self._running = _thread.allocate_lock()
        self._end = bytearray()
        self._has_reader = True
        self._is_shared = False  # by processes that outlive the program

    def start(self) -> None:
        """Begin; from now on the pipe ends when the last who writes to it does."""
        os.close(self.into)
        self._running.acquire()
        _thread.start_new_thread(self._run, ())

    def finish(self, timeout_s: float) -> bytes:
        """The end of what was said; when the program is dead, and so all that it said is in the pipe."""
        os.write(self._stop, b"x")
        if self._running.acquire(timeout=timeout_s):
            self._running.release()
        return bytes(self._end)

    def let_go(self, timeout_s: float) -> None:
        """Wait for a slow reader, within a bound; leave somebody behind for processes that outlive the program."""
        if not self._running.acquire(timeout=timeout_s) or not self._is_shared:
            return
        actions = [(os.POSIX_SPAWN_DUP2, self._from, 0), (os.POSIX_SPAWN_DUP2, 2, 1)]
        try:
            os.posix_spawnp("cat", ["cat"], os.environ, file_actions=actions, setpgroup=0, setsigmask=())
        except OSError:  # they are told that nobody reads any more
            pass

    def _run(self) -> None:
        poll = select.poll()
        poll.register(self._from, select.POLLIN)
        poll.register(self._stopped, select.POLLIN)
        left = _PIPE_BYTES

        def goes_on() -> bool:
            nonlocal left
            ready = {fd for fd, _ in poll.poll()}
            if self._stopped in ready:
                left -= 65536
            return self._from in ready and left > 0

        try:
            self._is_shared = not self._copy(goes_on)
        finally:
            self._running.release()

    def _copy(self, goes_on: Callable[[], bool]) -> bool:
        """Copy for as long as it goes on; whether the end was reached."""
        while goes_on():
            data = os.read(self._from, 65536)
            if not data:
                return True
            self._end += data
            del self._end[:-KEPT_BYTES]
            self._pass_on(memoryview(data))
        return False

    def _pass_on(self, data: memoryview[int]) -> None:
        while data and self._has_reader:
            try:
                data = data[os.write(2, data) :]
            except BlockingIOError:  # somebody who has the same file has made it so
                poll = select.poll()
                poll.register(2, select.POLLOUT)
                poll.poll()
            except OSError:  # who read it is gone; the program lives on
                self._has_reader = False


def _start(command: Sequence[str], relay: Relay | None) -> tuple[int, Collection[int]]:
    """
    Start the program; its process id, and the signals that were blocked before.

    By fork, since `posix_spawn` has no word for "die with your parent".

    Raises:
        OSError: it cannot be run.
    """
    # Ignored, nobody could wait for the program; by default, some systems throw it away although it is blocked.
    child_signal = signal.signal(signal.SIGCHLD, lambda *_: None)
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, {*FORWARDED, signal.SIGCHLD})
    failed, failing = os.pipe()
    parent = os.getpid()
    pid = os.fork()
    if pid == 0:
        problem = 0
        try:
            _die_with(parent)
            if relay is not None:
                os.dup2(relay.into, 2)
            for one in (*FORWARDED, signal.SIGPIPE, signal.SIGXFSZ):
                if one not in FORWARDED or signal.getsignal(one) is not signal.SIG_IGN:
                    signal.signal(one, signal.SIG_DFL)
            signal.signal(signal.SIGCHLD, child_signal or signal.SIG_DFL)
            signal.pthread_sigmask(signal.SIG_SETMASK, mask)
            os.execvp(command[0], list(command))  # noqa: S606
        except OSError as why:
            problem = why.errno or 0
        finally:
            os.write(failing, str(problem).encode())
            os._exit(126)
    os.close(failing)
    said = os.read(failed, 16)
    os.close(failed)
    if said:
        os.waitpid(pid, 0)
        raise OSError(int(said), os.strerror(int(said)))
    return pid, mask


def _die_with(parent: int) -> None:
    """Who kills the parent means the program: `kill -9` of the number that a process manager knows ends both."""
    try:
        import ctypes  # noqa: PLC0415  (in the child alone: 1 MB)

        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    except (ImportError, AttributeError, OSError):  # not on Linux
        return
    if os.getppid() != parent:
        os._exit(126)


def _wait(pid: int) -> tuple[int, list[int]]:
    """Pass signals on until the program has ended; its status, and the signals that came."""
    asked: list[int] = []
    while True:
        number, is_for_us_alone = _next_signal()
        if number == signal.SIGCHLD:
            status = _reap(pid)
            if status is not None:
                return status, asked
            continue
        asked.append(number)
        if is_for_us_alone:  # what a terminal sends has reached the program by itself
            os.kill(pid, number)


def _next_signal() -> tuple[int, bool]:
    """Wait for a signal; its number, and whether a process has sent it to us and not a terminal to all in front."""
    waited_for = {*FORWARDED, signal.SIGCHLD}
    if hasattr(signal, "sigwaitinfo"):
        came = signal.sigwaitinfo(waited_for)
        return came.si_signo, came.si_code <= 0
    number = signal.sigwait(waited_for)  # macOS: nobody says who has sent it
    return number, not (number in _OF_TERMINALS and _is_in_front())


def _is_in_front() -> bool:
    """Whether what is typed at a terminal interrupts us."""
    try:
        terminal = os.open("/dev/tty", os.O_RDONLY | os.O_NOCTTY)
    except OSError:
        return False
    try:
        return os.tcgetpgrp(terminal) == os.getpgrp()
    except OSError:
        return False
    finally:
        os.close(terminal)


def _reap(pid: int) -> int | None:
    """The program's status if it has ended; orphans, which the first process of a container gets, are buried too."""
    while True:
        try:
            dead, status = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            return None
        if dead == pid:
            return status
        if dead == 0:
            return None


def _end_as(code: int, mask: Collection[int]) -> NoReturn:
    if code < 0:
        number = -code
        try:
            import resource  # noqa: PLC0415

            resource.setrlimit(resource.RLIMIT_CORE, (0, 0))  # the core of the program is enough
            if number not in (signal.SIGKILL, signal.SIGSTOP):
                signal.signal(number, signal.SIG_DFL)
            signal.pthread_sigmask(signal.SIG_SETMASK, set(mask) - {number})
            os.kill(os.getpid(), number)
        except (ImportError, OSError, ValueError):
            pass
        os._exit(128 + number)  # the first process of a container dies of no signal
    os._exit(code)


# How often the kernel has killed for want of memory: by the control group that we and the program are in.


def _oom_kills() -> int | None:
    """The kills so far; None where the system does not say."""
    for place in _oom_files():
        try:
            with open(place, encoding="ascii") as file:  # noqa: PTH123  (pathlib is not loaded here)
                words = dict(line.split()[:2] for line in file if len(line.split()) > 1)
            return int(words["oom_kill"])
        except (OSError, KeyError, ValueError):
            continue
    return None


def _oom_files() -> list[str]:
    """Of version 2 and of version 1; in a container the group is the root of what is seen."""
    places = []
    try:
        with open("/proc/self/cgroup", encoding="ascii", errors="surrogateescape") as file:  # noqa: PTH123
            groups = [line.rstrip("\n").split(":", 2) for line in file]
    except OSError:
        return []
    for _, controllers, group in (one for one in groups if len(one) == 3):
        if controllers == "":
            places += [f"/sys/fs/cgroup{group}/memory.events", "/sys/fs/cgroup/memory.events"]
        elif "memory" in controllers.split(","):
            root = "/sys/fs/cgroup/memory"
            places += [f"{root}{group}/memory.oom_control", f"{root}/memory.oom_control"]
    return places


def _difference(before: int | None, after: int | None) -> int | None:
    return None if before is None or after is None else after - before


# Small things.


def _within(seconds: float, work: Callable[[], None]) -> None:
    """Work for a bounded time; whatever it does, the program's end goes on being ours."""
    done = _thread.allocate_lock()
    done.acquire()

    def run() -> None:
        try:
            work()
        except BaseException as problem:
            _say(f"the end of the program could not be recorded: {type(problem).__name__}: {problem}")
        finally:
            done.release()

    _thread.start_new_thread(run, ())
    if not done.acquire(timeout=seconds):
        _say("the end of the program could not be recorded in time")


def _say(text: str) -> None:
    try:
        os.write(2, f"tocsin: {text}\n".encode("utf-8", "backslashreplace"))
    except OSError:
        pass


def _is_open(fd: int) -> bool:
    try:
        os.fstat(fd)
    except OSError:
        return False
    return True


def _remove(path: str) -> None:
    try:
        os.unlink(path)  # noqa: PTH108
    except OSError:
        pass


if __name__ == "__main__":  # as `tocsin run` starts it
    watch(sys.argv[1:], os.environ.pop("TOCSIN_RUN_PATH").split(os.pathsep))
