"""
What `tocsin run` becomes: the program's parent, which sees how it ends and starts it again where that is ours.

Run as a script by a bare interpreter (`python -I -S watch.py PROGRAM …`) with a few modules of the standard
library, so that it takes a few megabytes for as long as the program runs. An end that is an error it writes
to the disk itself, in one complete line; what there is to say beyond that is worked out by a short-lived
interpreter of its own (`tocsin.deaths`). For the program nothing changes but that its stderr may be a pipe:
stdin, stdout and other descriptors are its own, signals come through once, and its end is our end.
"""

from __future__ import annotations

import _signal as signal  # type: ignore[import-not-found]  # without enumerations, which take longer than all the rest
import _thread
import fcntl
import gc
import os
import select
import sys
import time

TYPE_CHECKING = False
if TYPE_CHECKING:  # `typing` would be a tenth of all the memory
    from collections.abc import Callable, Collection, Mapping, Sequence
    from typing import Final, NoReturn

STOPS: Final = frozenset({signal.SIGTERM, signal.SIGINT, signal.SIGHUP})
"""What asks for an orderly end."""

FORWARDED: Final = STOPS | {signal.SIGQUIT, signal.SIGUSR1, signal.SIGUSR2}
KEPT_BYTES: Final = 16 * 1024
"""How much of the end of stderr is kept."""

MECHANISM: Final = "process-exit"
EXCEPTION_TYPE: Final = "ProcessExit"
MEMORY_LIMIT: Final = "MemoryLimit"
"""Words of the house; see `tocsin.exporter.deathnote`."""

_OF_SUPERVISORS = (signal.SIGKILL, signal.SIGABRT)  # what ends a stop that takes too long
_SAME_S = 0.15  # within which a signal to the whole tree reaches all of it, one after another too
_STOP_IS_OVER_S = 900.0  # a program that has lived on so long after a stop was asked for has not stopped
_REPORT_S = 6.0
_MARK_S = 0.5  # for who looks at what the program has left at the same moment
_REPORTER_S = 15.0
_DRAIN_S = 2.0
_READER_S = 10.0
_SAYS_SOON_S = 10.0
_LOOK_S = 2.0  # between two readings of the memory
_LONGEST_PAUSE_S = 60
_CALM_S = 60.0
_MORE_S = 5.0  # beyond the time that the program gives itself to stop
_PIPE_BYTES = 2**20  # the most that a pipe may hold: what the dead program wrote is not more
_COMMAND_CHARS = 2000
_PR_SET_PDEATHSIG = 1
_TURN_S = 2.0  # for the sentinel to have its turn, on a machine that has none to spare
_IN_TURN = 255  # what it says then; no signal has this number
_OF_ITS_NUMBER = ("LISTEN_PID", "WATCHDOG_PID")


class Plan:
    """What `tocsin run` has worked out, and hands over in the environment."""

    __slots__ = (
        *("folders", "max_bytes", "max_memory", "path", "resource", "restarts", "running"),
        *("service", "signals", "stop_s", "tells"),
    )

    def __init__(self, told: Mapping[str, str]) -> None:
        self.path = told.get("PATH", "").split(os.pathsep)  #  where the rest of tocsin is imported from
        self.folders = [
            one for one in told.get("SPOOL", "").split("\n") if one
        ]  #    the spool, then what stands in for it; see `is_usable`
        self.max_bytes = int(told.get("SPOOL_BYTES") or 0)  #  0: a tenth of the free disk, 1 GiB at most
        self.resource = told.get("RESOURCE", '{"service.name":"unknown_service"}')  # JSON; whose errors they are
        self.service = told.get("SERVICE", "unknown_service")
        self.tells = told.get("TELLS") == "1"  #               the program is instrumented: it marks its own life
        self.restarts = told.get("RESTART") == "1"
        self.max_memory = int(told.get("MAX_MEMORY") or 0)  #  bytes; 0: no limit
        self.stop_s = float(told.get("STOP_S") or 30)
        self.running = told.get("RUNNING", "")  #              see `Run.handed_over`
        self.signals = Signals.taken(told.get("SIGNALS", ""))

    @classmethod
    def taken(cls, environ: dict[str, str], prefix: str = "TOCSIN_RUN_") -> Plan:
        """Read out of an environment, and taken out of it."""
        return cls({name.removeprefix(prefix): environ.pop(name) for name in list(environ) if name.startswith(prefix)})


class Signals:
    """How signals were before they became ours: the program finds them so."""

    __slots__ = ("is_ignored", "mask")

    def __init__(self, mask: Collection[int], *, is_ignored: bool) -> None:
        self.mask = set(mask)
        self.is_ignored = is_ignored  # the end of a child

    @classmethod
    def held(cls) -> Signals:
        """Hold back what is for us to wait for; how it was before."""
        # Ignored, nobody could wait for the program; by default, some systems throw it away although it is blocked.
        before = signal.signal(signal.SIGCHLD, lambda *_: None)
        return cls(
            signal.pthread_sigmask(signal.SIG_BLOCK, {*FORWARDED, signal.SIGCHLD}), is_ignored=before == signal.SIG_IGN
        )

    @classmethod
    def taken(cls, told: str) -> Signals | None:
        """Those of which `tocsin run` has told."""
        words = told.split()
        return cls(tuple(map(int, words[1:])), is_ignored=words[0] == "1") if words else None

    def handed_over(self) -> str:
        """What `taken` reads."""
        return " ".join(map(str, (int(self.is_ignored), *map(int, self.mask))))

    def restore(self) -> None:
        """For the program, before it begins."""
        for one in (*FORWARDED, signal.SIGPIPE, signal.SIGXFSZ):
            if one not in FORWARDED or signal.getsignal(one) != signal.SIG_IGN:
                signal.signal(one, signal.SIG_DFL)
        signal.signal(signal.SIGCHLD, signal.SIG_IGN if self.is_ignored else signal.SIG_DFL)
        signal.pthread_sigmask(signal.SIG_SETMASK, self.mask)


class Run:
    """The program from a start to its end; times in nanoseconds of the epoch, 0 for never."""

    __slots__ = (
        *("asked", "began_ns", "began_s", "ended_ns", "forced", "grew", "instance", "kill_at_s", "memory_bytes"),
        *("note", "oom_kills", "peak_bytes", "pid", "relay", "status", "stopping_ns", "told"),
    )

    def __init__(self, plan: Plan, instance: str = "") -> None:
        self.began_ns, self.began_s = time.time_ns(), time.monotonic()
        self.ended_ns = 0
        self.pid = 0
        self.instance = instance or uuid7(self.began_ns)
        self.told = f"{plan.folders[0]}/{self.instance}.told" if plan.folders else ""
        self.grew = f"{plan.folders[0]}/{self.instance}.grew" if plan.folders else ""  # what it says of its memory
        self.asked: list[int] = []  # signals that came for it
        self.stopping_ns = 0  #       since when it was asked to stop
        self.memory_bytes = 0  #      what was too much
        self.kill_at_s = 0.0  #       when it is no longer waited for, 0 while nobody has asked it to stop
        self.forced = False
        self.status = 0
        self.peak_bytes = 0
        self.oom_kills = _oom_kills()
        self.relay: Relay | None = None
        self.note: Note | None = None

    @classmethod
    def taken_over(cls, plan: Plan) -> Run | None:
        """The one that `tocsin run` has started before it became us."""
        if not (told := plan.running):
            return None
        pid, began_ns, stderr, instance = told.split()
        run = cls(plan, instance)
        run.pid, run.began_ns = int(pid), int(began_ns)
        run.began_s -= (time.time_ns() - run.began_ns) / 1e9
        run.relay = Relay(int(stderr)) if stderr != "-1" else None
        return run

    def handed_over(self) -> str:
        """What `taken_over` reads."""
        stderr = -1
        if self.relay is not None:
            stderr = self.relay.source
            os.set_inheritable(stderr, True)
        return f"{self.pid} {self.began_ns} {stderr} {self.instance}"

    @property
    def code(self) -> int:
        """The exit code, or the negative number of the signal that killed it."""
        return os.waitstatus_to_exitcode(self.status)

    @property
    def uptime_s(self) -> float:
        return time.monotonic() - self.began_s

    @property
    def is_asked(self) -> bool:
        """Whether somebody wants it to end, and not to come again."""
        return bool(self.stopping_ns) or not {signal.SIGHUP, signal.SIGQUIT}.isdisjoint(self.asked)

    def ask(self, number: int) -> None:
        """A signal has come for it."""
        self.asked.append(number)
        if number in STOPS and number != signal.SIGHUP and not self.stopping_ns:  # to many, SIGHUP means: read anew
            self.stopping_ns = time.time_ns()
            if self.note is not None:
                self.note.mark_stopping(self.stopping_ns)


ENDED, STOPPED, LATE, RESTARTED, DIED = "ended", "stopped", "late", "restarted", "died"
"""How a program has ended; see `judge`."""


def judge(code: int, asked: Collection[int] = (), *, is_stopping: bool = False, oom_kills: int | None = None) -> str:
    """
    How an end is to be taken.

    ``stopped`` is what somebody asked for; ``late`` was ended by force since a stop took too long. Any other
    end but exit code 0 has ``died``.

    Args:
        code: the exit code, or the negative number of the signal that killed it.
        asked: the signals that came for it; a shell says 143 for a SIGTERM.
        is_stopping: it was asked to stop, and not so long ago that it must have gone on living.
        oom_kills: how many the kernel killed for want of memory meanwhile.
    """
    number = -code if code < 0 else code - 128
    if code == 0:
        return STOPPED if is_stopping else ENDED
    if number in asked:
        return STOPPED
    return LATE if is_stopping and number in _OF_SUPERVISORS and not oom_kills else DIED


def exit_as(code: int, asked: Collection[int] = ()) -> int:
    """How we end for it: the same way, but that an orderly stop is exit code 0."""
    number = -code if code < 0 else code - 128
    return 0 if number in STOPS and number in asked else code


def watch(command: Sequence[str], plan: Plan) -> NoReturn:
    """Run a program, again where that is ours, tell of each end that is an error, and end as it did."""
    held = Signals.held()
    signals = plan.signals or held
    if not plan.running:
        plan.folders = first_usable(plan)
    sentinel = Sentinel()
    run = Run.taken_over(plan)
    pause_s = 0
    while True:
        sentinel.stand()
        if run is None:
            run = Run(plan)
            try:
                start(run, command, plan, signals, os.environ)
            except OSError as problem:
                _say(f"{command[0]!r} cannot be run: {problem.strerror}")
                os._exit(126)
        if run.relay is not None:
            run.relay.start()
        if not plan.tells:
            run.note = Note.open(plan, _header(run, plan))
            if run.note is not None:
                run.note.mark()
        wait(run, plan, sentinel)
        stderr = run.relay.finish(_DRAIN_S) if run.relay is not None else b""
        how = _settle(run, plan, command, stderr)
        is_ours = _goes_on(run, plan, how)
        _forget(run, 0.0 if is_ours else _READER_S)
        if not is_ours:
            end_as(exit_as(run.code, run.asked), signals.mask)
        is_calm = run.uptime_s >= _CALM_S
        pause_s = min(2 * pause_s, _LONGEST_PAUSE_S) if pause_s and not is_calm else 1
        now_s = 0 if is_calm and how == RESTARTED else pause_s
        _say(f"{plan.service} {_said(run, how)}; starting it again{f' in {now_s} s' if now_s else ''}")
        run = None
        if _is_stopped_within(now_s, sentinel):
            os._exit(0)


def _goes_on(run: Run, plan: Plan, how: str) -> bool:
    """Whether it is for us to start the program again."""
    return how == RESTARTED or (plan.restarts and how == DIED and not run.is_asked)


def _said(run: Run, how: str) -> str:
    """What has happened, without a word of the program's own."""
    uptime = _span(run.uptime_s)
    if how == RESTARTED:
        return f"took {_megabytes(run.memory_bytes)} of memory after {uptime}, and was stopped"
    said = f"exited with code {run.code}" if run.code > 0 else f"was killed by {signal_name(-run.code)}"
    return f"{said} after {uptime}"


def _is_stopped_within(seconds: float, sentinel: Sentinel) -> bool:
    """Wait, unless somebody asks for the end."""
    until = time.monotonic() + seconds
    while (left := until - time.monotonic()) > 0:
        came = _next_signal(left)
        if came is None:
            return False
        if came == signal.SIGCHLD:
            _reap(0, sentinel)
        elif came in STOPS or came == signal.SIGQUIT:
            return True
    return False


# Starting it, and waiting for its end.


def start(run: Run, command: Sequence[str], plan: Plan, signals: Signals, environ: Mapping[str, str]) -> None:
    """
    Start the program; `tocsin run` does so by itself, so that nobody waits until it has become us.

    By fork, since `posix_spawn` has no word for "die with your parent".

    Raises:
        OSError: it cannot be run.
    """
    environ = {
        **environ,
        "TOCSIN_TOLD": run.told,
        "TOCSIN_WATCHER": str(os.getpid()),
        "TOCSIN_INSTANCE": run.instance,
    }
    if plan.max_memory:
        environ["TOCSIN_MAX_MEMORY"] = f"{plan.max_memory} {os.getpid()}"
    # A program that tells of its exceptions itself keeps its terminal: colours, and a bar that grows.
    launch(run, command, signals, environ, keeps_terminal=plan.tells)


def launch(
    run: Run, command: Sequence[str], signals: Signals, environ: Mapping[str, str], *, keeps_terminal: bool
) -> None:
    """
    Start a program that knows nothing of its parent.

    Raises:
        OSError: it cannot be run.
    """
    if _is_open(2) and not (keeps_terminal and os.isatty(2)):
        run.relay = Relay()
    environ = dict(environ)
    failed, failing = os.pipe()
    parent = os.getpid()
    run.pid = os.fork()
    if run.pid == 0:
        problem = 0
        try:
            _die_with(parent)
            if run.relay is not None:
                os.dup2(run.relay.into, 2)
            signals.restore()
            for name in _OF_ITS_NUMBER:  # what systemd hands over is for whoever has this number
                if environ.get(name) == str(parent):
                    environ[name] = str(os.getpid())
            os.execvpe(command[0], list(command), environ)  # noqa: S606
        except OSError as why:
            problem = why.errno or 0
        finally:
            os.write(failing, str(problem).encode())
            os._exit(126)
    os.close(failing)
    if run.relay is not None:
        os.close(run.relay.into)  # from now on the pipe ends when the last who writes to it does
    said = os.read(failed, 16)
    os.close(failed)
    if said:
        os.waitpid(run.pid, 0)
        raise OSError(int(said), os.strerror(int(said)))


def _die_with(parent: int) -> None:
    """Who kills the parent means the program: `kill -9` of the number that a process manager knows ends both."""
    try:
        import _ctypes  # noqa: PLC0415  (what `ctypes` adds takes ten times as long)

        prctl = _ctypes.dlsym(_ctypes.dlopen(None, 0), "prctl")  # type: ignore[arg-type]
        _ctypes.call_function(prctl, (_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0))
    except (ImportError, AttributeError, OSError):  # not on Linux
        return
    if os.getppid() != parent:
        os._exit(126)


def wait(run: Run, plan: Plan, sentinel: Sentinel) -> None:
    """Pass signals on until the program has ended, and look that it does not take too much memory."""
    was_above = False
    number: int | None = signal.SIGCHLD  # it may have ended before we were there to hear of it
    while True:
        if number is None:
            was_above = _look(run, plan, was_above=was_above)
        elif number != signal.SIGCHLD:
            run.ask(number)
            if not sentinel.has_heard(number, run.pid):
                _send(run.pid, number)
        elif _reap(run.pid, sentinel, run):
            run.ended_ns = time.time_ns()
            number = -run.code if run.code < 0 else run.code - 128
            if number in FORWARDED and number not in run.asked:  # it may have been sent to it first
                _hear_late(run, sentinel)
            return
        number = _next_signal(_LOOK_S if plan.max_memory else None)


def _hear_late(run: Run, sentinel: Sentinel) -> None:
    until = time.monotonic() + _SAME_S
    while (left := until - time.monotonic()) > 0 and (came := _next_signal(left)) is not None:
        if came == signal.SIGCHLD:
            _reap(0, sentinel)
        else:
            run.ask(came)


def _look(run: Run, plan: Plan, *, was_above: bool) -> bool:
    """Stop the program when it takes too much memory for the second time in a row; whether it does now."""
    if run.kill_at_s:
        if time.monotonic() > run.kill_at_s and not run.forced:
            run.forced = True
            for pid in _family(run.pid):
                _send(pid, signal.SIGKILL)
        return False
    if run.stopping_ns or not plan.max_memory:
        return False
    used = _memory_of(run.pid, plan.max_memory)
    if used <= plan.max_memory:
        return False
    if was_above:
        run.memory_bytes = used
        run.kill_at_s = time.monotonic() + plan.stop_s + _MORE_S
        _say(f"{plan.service} takes {_megabytes(used)} of memory, of {_megabytes(plan.max_memory)}: it is stopped")
        _send(run.pid, signal.SIGTERM)
    return True


def _send(pid: int, number: int) -> None:
    try:
        os.kill(pid, number)
    except OSError:  # gone
        pass


def _next_signal(timeout_s: float | None = None) -> int | None:
    """The next signal that comes; None when the time is over."""
    waited_for = {*FORWARDED, signal.SIGCHLD}
    if timeout_s is None:
        return int(signal.sigwait(waited_for))
    if hasattr(signal, "sigtimedwait"):
        came = signal.sigtimedwait(waited_for, timeout_s)
        return None if came is None else int(came.si_signo)
    until = time.monotonic() + timeout_s  # macOS
    while not signal.sigpending() & waited_for:
        if time.monotonic() > until:
            return None
        time.sleep(0.05)
    return int(signal.sigwait(waited_for))


def _reap(pid: int, sentinel: Sentinel, run: Run | None = None) -> bool:
    """Whether the program has ended; orphans, which the first process of a container gets, are buried too."""
    while True:
        try:
            dead, status, usage = os.wait4(-1, os.WNOHANG)
        except ChildProcessError:
            return False
        if dead == 0:
            return False
        sentinel.note_end(dead)
        if dead == pid and run is not None:
            run.status, run.peak_bytes = status, usage.ru_maxrss * (1 if sys.platform == "darwin" else 1024)
            return True


class Sentinel:
    """
    A child of ours that only waits, and says which signals reach it.

    Who signals the whole tree (PM2 one by one, systemd, `kill -- -group`) reaches the sentinel too, and so has
    reached the program; who signals us alone means that we pass it on. To some programs a second SIGINT means
    "at once". It shares our memory, and ends with us.
    """

    def __init__(self) -> None:
        self._pid = 0
        self._words = self._life = -1
        self._heard: list[tuple[int, float]] = []

    def stand(self) -> None:
        """Be there, again where somebody has killed it; only while no other thread runs."""
        if self._pid:
            return
        for fd in (self._words, self._life):
            if fd >= 0:
                os.close(fd)
        self._words, words = os.pipe()
        life, self._life = os.pipe()
        os.set_blocking(words, False)
        os.set_blocking(self._words, False)
        gc.freeze()  # what a collection does not touch stays shared
        try:
            self._pid = os.fork()
        except OSError:  # no more processes: signals are passed on as ever
            return
        if self._pid == 0:
            self._listen(words, life)
        os.close(words)
        os.close(life)

    def _listen(self, words: int, life: int) -> NoReturn:
        try:
            gc.disable()
            for fd in (0, 1, 2, self._words, self._life):
                try:
                    os.close(fd)
                except OSError:
                    pass

            def hear(number: int, frame: object) -> None:
                try:
                    os.write(words, bytes([number]) + time.monotonic_ns().to_bytes(8, "little"))
                except OSError:  # nobody reads
                    pass

            for number in FORWARDED:
                signal.signal(number, hear)
            signal.pthread_sigmask(signal.SIG_UNBLOCK, FORWARDED)
            while os.read(life, 1):  # until nobody holds the other end: we are gone
                hear(_IN_TURN, None)
        finally:
            os._exit(0)

    def note_end(self, pid: int) -> None:
        """A child has ended."""
        if pid == self._pid:
            self._pid = 0

    def has_heard(self, number: int, program: int) -> bool:
        """Whether a signal that has just come went to the whole tree; waits a moment where it did not."""
        try:
            if os.getpgid(program) != os.getpgrp():
                return False  # what goes to our group does not reach it
        except OSError:
            return True  # it has ended
        began = time.monotonic()
        if self._is_said(number, began, began + _SAME_S):
            return True
        # On a busy machine it may not have had its turn yet; what came before the question is said before the answer.
        if not self._pid or not self._asks():
            return False
        is_told = self._is_said(number, began, time.monotonic() + _TURN_S, _IN_TURN)
        self._heard = [one for one in self._heard if one[0] != _IN_TURN]
        return is_told

    def _is_said(self, number: int, began: float, until: float, or_else: int = 0) -> bool:
        """Wait until a signal is heard of; no longer than until the other word is."""
        poll = select.poll()
        poll.register(self._words, select.POLLIN)
        while True:
            self._hear(began - _SAME_S)
            for one in self._heard:
                if one[0] == number:
                    if number not in signal.sigpending():  # two that come close together are one to the sentinel
                        self._heard.remove(one)  # each goes for one of ours
                    return True
            left = until - time.monotonic()
            is_answered = any(one[0] == or_else for one in self._heard)
            if is_answered or left <= 0 or not self._pid or not poll.poll(left * 1000):
                return False

    def _asks(self) -> bool:
        try:
            return os.write(self._life, b"?") == 1
        except OSError:  # it has just been killed
            return False

    def _hear(self, since: float) -> None:
        """Read its words; those from before are of no use."""
        try:
            while said := os.read(self._words, 9 * 100):
                words = [said[at : at + 9] for at in range(0, len(said), 9)]
                self._heard += [(word[0], int.from_bytes(word[1:], "little") / 1e9) for word in words]
        except OSError:
            pass
        self._heard = [one for one in self._heard if one[1] >= since]


# What it says on stderr.


class Relay:
    """The program's stderr on its way to ours: byte for byte, at once, and its end is kept."""

    def __init__(self, source: int = -1) -> None:
        self.into = -1
        self.source = source
        if source < 0:
            self.source, self.into = os.pipe()
        else:
            os.set_inheritable(source, False)
        self._stopped, self._stop = os.pipe()
        self._running = _thread.allocate_lock()
        self._end = bytearray()
        self._has_reader = True
        self._is_shared = False  # by processes that outlive the program

    def start(self) -> None:
        """Begin."""
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
        if not self._running.acquire(timeout=timeout_s):
            return
        if self._is_shared:
            actions = [(os.POSIX_SPAWN_DUP2, self.source, 0), (os.POSIX_SPAWN_DUP2, 2, 1)]
            try:
                os.posix_spawnp("cat", ["cat"], os.environ, file_actions=actions, setpgroup=0, setsigmask=())
            except OSError:  # they are told that nobody reads any more
                pass
        for fd in (self.source, self._stopped, self._stop):
            os.close(fd)

    def _run(self) -> None:
        poll = select.poll()
        poll.register(self.source, select.POLLIN)
        poll.register(self._stopped, select.POLLIN)
        left = _PIPE_BYTES

        def goes_on() -> bool:
            nonlocal left
            ready = {fd for fd, _ in poll.poll()}
            if self._stopped in ready:
                left -= 65536
            return self.source in ready and left > 0

        try:
            self._is_shared = not self._copy(goes_on)
        finally:
            self._running.release()

    def _copy(self, goes_on: Callable[[], bool]) -> bool:
        """Copy for as long as it goes on; whether the end was reached."""
        while goes_on():
            data = os.read(self.source, 65536)
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


# What is known of its end, on the disk.

# Where a .live file says how far its process has got; see `tocsin.exporter.life`.
MAGIC: Final = b"tocsin1\0"
STOPPING_CELL: Final = 5
STATE_CELL: Final = 6
WATCHER_CELL: Final = 7
ALIVE: Final = 1
UNTOLD: Final = (1, 3)  # alive, and left by `os._exit`
TOLD: Final = 4


class Note:
    """
    A segment of the spool with what is known of one run of the program, locked for as long as that is ours.

    Whoever finds it unlocked stores it, whatever became of us.
    """

    __slots__ = ("_header", "_live", "folder", "stem")

    def __init__(self, folder: str, stem: str, live: int, header: bytes) -> None:
        self.folder = folder
        self.stem = stem
        self._live = live
        self._header = header

    @classmethod
    def open(cls, plan: Plan, header: bytes) -> Note | None:
        """Begin one in the first folder that can be used; None without any."""
        stem = f"{time.time_ns():020d}-{os.getpid()}-{os.urandom(4).hex()}"
        for folder in plan.folders:
            try:
                if _folder_bytes(folder) > (plan.max_bytes or _default_bytes(folder)):
                    raise OSError(28, "it is full")
                note = cls(folder, stem, _locked(f"{folder}/{stem}"), header)
                note._write(b"")
            except OSError as problem:
                _say(f"the spool folder {folder} cannot be used: {problem.strerror}")
            else:
                return note
        return None

    def mark(self) -> None:
        """Say that the program lives: an end of which no more is said was one by force."""
        cells = [MAGIC, *[bytes(8)] * 7]
        cells[STATE_CELL] = ALIVE.to_bytes(8, "little")
        os.pwrite(self._live, b"".join(cells), 0)

    def mark_stopping(self, now_ns: int) -> None:
        """Say since when it was asked to stop."""
        os.pwrite(self._live, now_ns.to_bytes(8, "little"), 8 * STOPPING_CELL)

    def write(self, header: bytes, line: bytes) -> None:
        """How it has ended; on the disk when this returns."""
        self._header = header
        self._write(line)
        os.pwrite(self._live, TOLD.to_bytes(8, "little"), 8 * STATE_CELL)

    def _write(self, line: bytes) -> None:
        path = f"{self.folder}/{self.stem}.0001"
        fd = os.open(f"{path}.new", os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        try:
            data = self._header + line
            if os.write(fd, data) < len(data):
                raise OSError(28, "it is full")
            if line:
                os.fsync(fd)
        finally:
            os.close(fd)
        os.rename(f"{path}.new", f"{path}.seg")  # noqa: PTH104

    def release(self) -> None:
        """Leave it to whoever stores it."""
        os.close(self._live)

    def remove(self) -> None:
        """There is nothing to tell."""
        _remove(f"{self.folder}/{self.stem}.0001.seg")
        _remove(f"{self.folder}/{self.stem}.live")
        self.release()


def first_usable(plan: Plan) -> list[str]:
    """The spool, or what stands in for it, which is made only where it is needed; none where neither can be used."""
    for folder in map(os.path.abspath, plan.folders):
        if is_usable(folder, plan):
            return [folder]
    return []


def is_usable(folder: str, plan: Plan) -> bool:
    """Whether a folder can be written to; a program that is instrumented says by itself that it cannot."""
    try:
        os.makedirs(folder, 0o700, exist_ok=True)  # noqa: PTH103
        if os.stat(folder).st_uid != os.getuid():  # noqa: PTH116
            raise PermissionError(1, "it belongs to another user")
        if not os.access(folder, os.W_OK | os.X_OK):
            raise PermissionError(1, "it may not be written")
    except OSError as problem:
        if not plan.tells:
            _say(f"the spool folder {folder} cannot be used: {problem.strerror}")
        return False
    return True


def _locked(base: str) -> int:
    # Under another name first: nobody may find it unlocked and take it for an orphan's.
    fd = os.open(f"{base}.new", os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    fcntl.lockf(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    os.rename(f"{base}.new", f"{base}.live")  # noqa: PTH104
    return fd


def _folder_bytes(folder: str) -> int:
    with os.scandir(folder) as entries:
        return sum(one.stat(follow_symlinks=False).st_size for one in entries if one.name.endswith((".seg", ".jsonl")))


def _default_bytes(folder: str) -> int:
    disk = os.statvfs(folder)
    return min(2**30, disk.f_bavail * disk.f_frsize // 10)


def _header(run: Run, plan: Plan) -> bytes:
    """The first line of a segment: of which process it is, and how that has ended."""
    head = {
        "v": 1,
        "kind": "segment",
        "started_ns": run.began_ns,
        "ended_ns": run.ended_ns,
        "ended_how": _how(run) if run.ended_ns else None,
    }
    whose = {"service.instance.id": run.instance, "process.pid": run.pid, "host.name": os.uname().nodename}
    return f'{as_json(head)[:-1]},"resource":{as_json(whose)[:-1]},{plan.resource[1:]}}}\n'.encode()


def _how(run: Run) -> str:
    return f"exited: {run.code}" if run.code >= 0 else f"killed: {signal_name(-run.code)}"


def as_line(run: Run, plan: Plan, how: str, error_id: str) -> bytes:
    """The end as a line of the spool: complete, and with nothing in it that could be a secret."""
    is_death = how == DIED and -run.code not in STOPS  # `kill` of the program itself is somebody's wish as well
    name = signal_name(-run.code) if run.code < 0 else f"exit code {run.code}"
    attributes: dict[str, object] = {
        "exception.type": MEMORY_LIMIT if how == RESTARTED else EXCEPTION_TYPE,
        "tocsin.mechanism": MECHANISM,
        "tocsin.handled": False,
        "tocsin.severity": "critical" if is_death else "medium",
        "tocsin.exit": True,
        "tocsin.place": {DIED: name, LATE: "stop ran out of time"}.get(how, "memory limit"),
        "process.exit.signal" if run.code < 0 else "process.exit.code": name if run.code < 0 else run.code,
        "process.uptime_s": round((run.ended_ns - run.began_ns) / 1e9, 3),
    }
    said = _said(run, how) if how != LATE else f"was killed: stop ran out of time after {_stop_s(run)} s"
    line = {
        "v": 1,
        "kind": "error",
        "id": error_id,
        "time_unix_nano": run.ended_ns,
        "severity_number": 21 if is_death else 13,
        "event_name": "exception",
        "trace_id": None,
        "span_id": None,
        "body": f"{plan.service} {said}",
        "attributes": attributes,
    }
    return as_json(line).encode() + b"\n"


def _stop_s(run: Run) -> int:
    return round((run.ended_ns - run.stopping_ns) / 1e9)


def _settle(run: Run, plan: Plan, command: Sequence[str], stderr: bytes) -> str:
    """Find out how the program has ended, and have it recorded where that is worth it."""
    left = Left.find(run.pid, plan)
    if left is not None and left.stopping_ns and not run.stopping_ns:  # somebody has asked the program itself
        run.stopping_ns = left.stopping_ns
        run.asked += [-run.code] if -run.code in STOPS else []
    elif -run.code in STOPS and not (run.asked or run.memory_bytes) and _was_told(run.told):  # the same
        run.stopping_ns = run.ended_ns
        run.asked = [-run.code]
    stopping_s = (run.ended_ns - run.stopping_ns) / 1e9 if run.stopping_ns else 0.0
    if stopping_s > _STOP_IS_OVER_S + plan.stop_s:  # it has gone on living
        run.stopping_ns = 0
        run.asked = [number for number in run.asked if number not in STOPS]
    oom_kills = _difference(run.oom_kills, _oom_kills())
    how = judge(run.code, run.asked, is_stopping=bool(run.stopping_ns), oom_kills=oom_kills)
    if run.memory_bytes and not run.stopping_ns:
        how = RESTARTED
    try:
        if how in (ENDED, STOPPED):
            if run.note is not None:
                run.note.remove()
        else:
            # The same id as whoever gives it who finds the program's files when we are gone: it counts once.
            error_id = uuid7(left.time_ns, left.tail) if left is not None else uuid7(run.ended_ns)
            seen = {"command": _shortened(command), "oom_kills": oom_kills, "stderr": stderr.hex()}
            _record(run, plan, how, error_id, seen)
        if left is not None:
            left.mark_told()
    except OSError as problem:
        _say(f"the end of {plan.service} could not be recorded: {problem.strerror}")
    return how


def _record(run: Run, plan: Plan, how: str, error_id: str, seen: Mapping[str, object]) -> None:
    """First the line itself, which is on the disk whatever comes; then all that can be found out, within a bound."""
    is_told = how == DIED and run.code > 0 and _was_told(run.told)
    note = run.note or Note.open(plan, _header(run, plan))
    if note is None:
        return
    note.write(_header(run, plan), b"" if is_told else as_line(run, plan, how, error_id))
    evidence = {
        **seen,
        "how": how,
        "is_told": is_told,
        "folder": note.folder,
        "stem": note.stem,
        "error_id": error_id,
        "service": plan.service,
        "pid": run.pid,
        "watcher": os.getpid(),
        "code": run.code,
        "has_core": os.WCOREDUMP(run.status),
        "asked": run.asked,
        "began_ns": run.began_ns,
        "ended_ns": run.ended_ns,
        "stopping_ns": run.stopping_ns,
        "peak_bytes": run.peak_bytes,
        "memory_bytes": run.memory_bytes,
        "max_memory": plan.max_memory,
        "is_forced": run.forced,
        "grew": _read(run.grew).decode("utf-8", "replace"),
    }
    reporter = Reporter(plan.path, evidence)
    until = time.monotonic() + _REPORT_S
    if not reporter.has_written(until - time.monotonic()):
        reporter.kill()
        _say(f"more than the bare end of {plan.service} could not be recorded")
    note.release()
    reporter.let_go(0 if _goes_on(run, plan, how) else until - time.monotonic())


class Reporter:
    """The short-lived interpreter that works out what there is to say of an end, and stores it."""

    _CODE = (
        f"import _signal; _signal.alarm({_REPORTER_S:.0f});"  # whatever it hangs on
        "import json, sys; told = json.load(sys.stdin); sys.path[:] = told['path'];"
        "from tocsin.deaths import main; main(told)"
    )

    def __init__(self, path: Sequence[str], evidence: dict[str, object]) -> None:
        what, into = os.pipe()
        self._said, says = os.pipe()
        self._pid = 0
        actions = [(os.POSIX_SPAWN_DUP2, what, 0), (os.POSIX_SPAWN_DUP2, says, 1)]
        try:
            # Who signals the whole tree does not mean it: it ends by itself, within a bound.
            self._pid = os.posix_spawn(
                sys.executable,
                [sys.executable, "-I", "-S", "-c", self._CODE],
                os.environ,
                file_actions=actions,
                setpgroup=0,
                setsigmask=FORWARDED,
            )
            os.set_blocking(into, False)  # it fits into the pipe; a wait could be for ever
            os.write(into, as_json({"path": list(path), **evidence}).encode())
        except OSError as problem:
            _say(f"{sys.executable} cannot be run: {problem.strerror}")
        finally:
            for fd in (what, into, says):
                os.close(fd)

    def has_written(self, timeout_s: float) -> bool:
        """Whether all that is known is on the disk."""
        return self._word(timeout_s) != b""

    def let_go(self, timeout_s: float) -> None:
        """Wait until it has ended, within a bound."""
        self._word(timeout_s)
        os.close(self._said)

    def _word(self, timeout_s: float) -> bytes:
        poll = select.poll()
        poll.register(self._said, select.POLLIN)
        return os.read(self._said, 64) if poll.poll(max(timeout_s, 0) * 1000) else b""

    def kill(self) -> None:
        """It shall not go on with what is settled without it."""
        if self._pid:
            _send(self._pid, signal.SIGKILL)


def _shortened(command: Sequence[str]) -> list[str]:
    """So much of a command as people are shown, and a little more."""
    words: list[str] = []
    left = _COMMAND_CHARS
    for word in command:
        words.append(word[:left])
        left -= len(word) + 1
        if left <= 0:
            break
    return words


def _was_told(told: str) -> bool:
    """Whether the program's own last words are with us already; an older note is of some worker of it."""
    try:
        return time.time() - os.stat(told).st_mtime < _SAYS_SOON_S  # noqa: PTH116
    except OSError:
        return False


class Left:
    """What the program has left of its own life in the spool: its .live file, for as long as nobody has taken it."""

    __slots__ = ("path", "stopping_ns", "tail", "time_ns")

    def __init__(self, path: str, stopping_ns: int) -> None:
        self.path = path
        self.stopping_ns = stopping_ns
        began, pid, chance = path.rpartition("/")[2].removesuffix(".live").split("-")
        self.time_ns, self.tail = int(began), (int(pid) & 0x3FFF_FFFF) << 32 | int(chance, 16)

    @classmethod
    def find(cls, pid: int, plan: Plan) -> Left | None:
        """The newest that a child of ours with this number has left without a last word."""
        for folder in plan.folders:
            try:
                names = [name for name in os.listdir(folder) if name.endswith(".live") and f"-{pid}-" in name]  # noqa: PTH208
            except OSError:
                continue
            for name in sorted(names, reverse=True):
                head = _read(f"{folder}/{name}")[:64]
                cells = [int.from_bytes(head[at : at + 8], "little") for at in range(0, len(head), 8)]
                if len(cells) == 8 and cells[WATCHER_CELL] == os.getpid() and cells[STATE_CELL] & 0xFF in UNTOLD:
                    return cls(f"{folder}/{name}", cells[STOPPING_CELL])
        return None

    def mark_told(self) -> None:
        """Say that the end is settled: nobody else need tell of it."""
        try:
            fd = os.open(self.path, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
        except OSError:  # it is stored
            return
        until = time.monotonic() + _MARK_S
        try:
            while not _lock(fd) and time.monotonic() < until:  # somebody looks whose it is, and leaves it to us
                time.sleep(0.005)
            if _lock(fd):
                os.pwrite(fd, bytes([TOLD]), 8 * STATE_CELL)
        except OSError:
            pass
        finally:
            os.close(fd)


def _lock(fd: int) -> bool:
    try:
        fcntl.lockf(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True


def _forget(run: Run, reader_s: float) -> None:
    """Let go of what was of this run alone."""
    _remove(run.told)
    _remove(run.grew)
    if run.relay is not None:
        run.relay.let_go(reader_s)


def end_as(code: int, mask: Collection[int]) -> NoReturn:
    """End as the program did: with its exit code, or by its signal."""
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


# How much memory it takes.


def _memory_of(pid: int, limit: int) -> int:
    """
    The resident memory of a process and its descendants, in bytes; what they share counts once.

    What each takes for itself is dear to find out, so that it is asked for only where the sum that counts
    shared memory for each of them is beyond the limit.
    """
    family = _family(pid)
    page = os.sysconf("SC_PAGE_SIZE")
    resident = {one: int((_read(f"/proc/{one}/statm").split() or (b"", b"0"))[1]) * page for one in family}
    if sum(resident.values()) <= limit or len(family) == 1:
        return sum(resident.values())
    return sum(_own_share(one) or resident[one] for one in family)


def _own_share(pid: int) -> int:
    for line in _read(f"/proc/{pid}/smaps_rollup").split(b"\n"):
        if line.startswith(b"Pss:"):
            return int(line.split()[1]) * 1024
    return 0


def _family(pid: int) -> list[int]:
    """A process and its descendants."""
    children: dict[int, list[int]] = {}
    try:
        names = os.listdir("/proc")  # noqa: PTH208
    except OSError:
        return [pid]
    for name in names:
        if name.isdigit():
            after = _read(f"/proc/{name}/stat").rpartition(b")")[2].split()
            if len(after) > 1:
                children.setdefault(int(after[1]), []).append(int(name))
    family = [pid]
    for one in family:
        family += children.get(one, [])
    return family


def _read(path: str) -> bytes:
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return b""
    try:
        return os.read(fd, 4096)
    except OSError:
        return b""
    finally:
        os.close(fd)


# Small things.


def uuid7(time_ns: int, tail: int | None = None) -> str:
    """
    A UUIDv7, hyphenated.

    Source: RFC 9562, section 5.7, and section 6.2 method 3.

    Args:
        tail: the last 62 bits (default: chance).
    """
    millis, rest_ns = divmod(time_ns, 1_000_000)
    tail = int.from_bytes(os.urandom(8), "big") >> 2 if tail is None else tail
    text = f"{millis << 80 | 0x7 << 76 | rest_ns * 4096 // 1_000_000 << 64 | 0b10 << 62 | tail:032x}"
    return f"{text[:8]}-{text[8:12]}-{text[12:16]}-{text[16:20]}-{text[20:]}"


def as_json(value: object) -> str:
    """A value as JSON in ASCII; the library for it would take more memory than all of this."""
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    if isinstance(value, dict):
        return "{" + ",".join(f"{as_json(key)}:{as_json(one)}" for key, one in value.items()) + "}"
    if isinstance(value, list | tuple):
        return "[" + ",".join(map(as_json, value)) + "]"
    if isinstance(value, int | float):
        return repr(int(value) if isinstance(value, int) else value)
    return '"' + "".join(map(_escaped, str(value))) + '"'


def _escaped(char: str) -> str:
    number = ord(char)
    if char in '"\\':
        return "\\" + char
    if 32 <= number < 127:
        return char
    if number < 0x10000:
        return f"\\u{number:04x}"
    number -= 0x10000
    return f"\\u{0xD800 | number >> 10:04x}\\u{0xDC00 | number & 0x3FF:04x}"


def signal_name(number: int) -> str:
    """SIGTERM of 15."""
    names = (name for name, value in vars(signal).items() if value == number and name[:3] == "SIG" and name[3] != "_")
    return min(names, default=f"signal {number}")  # the first of two is the one that is said


def _span(seconds: float) -> str:
    for size, unit in ((86_400, "d"), (3_600, "h"), (60, "min")):
        if seconds >= 2 * size:
            return f"{seconds / size:.0f} {unit}"
    return f"{seconds:.0f} s"


def _megabytes(size: int) -> str:
    return f"{size / 2**20:,.0f} MB"


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
    watch(sys.argv[1:], Plan.taken(os.environ))  # type: ignore[arg-type]
