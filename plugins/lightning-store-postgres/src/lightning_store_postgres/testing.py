"""A PostgreSQL server of one's own, for tests: it lives in a temporary directory, and is gone when it is stopped."""

from __future__ import annotations

import itertools
import os
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Self

__all__ = ["PostgresServer", "find_fast_directory", "find_server_binaries"]

_START_SECONDS = 60
_FALLBACK_USERS = ("postgres", "nobody")


def find_server_binaries() -> Path | None:
    """Return the directory of ``initdb``, ``postgres`` and ``pg_ctl``, the newest there is, or ``None``."""
    places = sorted(
        Path("/usr/lib/postgresql").glob("*/bin"), key=lambda path: float(path.parent.name), reverse=True
    )
    on_path = shutil.which("pg_ctl")
    if on_path is not None:
        places.append(Path(on_path).resolve().parent)
    needed = ("initdb", "postgres", "pg_ctl")
    return next((place for place in places if all((place / name).exists() for name in needed)), None)


def find_fast_directory() -> Path | None:
    """Return a directory in memory that has room for a small server, or ``None``.

    There a server promises nothing against a loss of power, which no test can see, and commits cost no disk's time.
    """
    memory = Path("/dev/shm")
    has_room = memory.is_dir() and os.access(memory, os.W_OK) and shutil.disk_usage(memory).free > 2**30
    return memory if has_room else None


class PostgresServer:
    """A PostgreSQL server on loopback, with a data directory that is removed in the end.

    Use it with ``with``. PostgreSQL refuses to run as root: it then runs as ``postgres``, or else ``nobody``.

    Args:
        binaries: Where the server's programs are; those of Debian's packages, or on the PATH, by default.
        options: Further settings, such as ``{"max_connections": 50}``.
        password: What clients must give; ``None`` lets everybody in who comes from this machine.
        directory: Where to make the data directory, for instance on a small disk that is to be filled.

    Raises:
        FileNotFoundError: If no server is installed.
    """

    def __init__(
        self,
        binaries: Path | None = None,
        *,
        options: dict[str, Any] | None = None,
        password: str | None = None,
        directory: Path | None = None,
    ) -> None:
        found = binaries or find_server_binaries()
        if found is None:
            raise FileNotFoundError(
                "no PostgreSQL server is installed: apt-get install postgresql, or set LIGHTNING_TEST_POSTGRES to the "
                "URL of a running one"
            )
        self._binaries = found
        self._options = options or {}
        self._password = password
        self._parent = directory
        self._root: Path | None = None
        self._port = 0
        self._known = False
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        """The URL of its database ``postgres``, without the password."""
        return f"postgresql://lightning@127.0.0.1:{self._port}/postgres"

    @property
    def port(self) -> int:
        """Its port on loopback."""
        return self._port

    @property
    def data(self) -> Path:
        """Its data directory."""
        if self._root is None:
            raise RuntimeError("the server was not started")
        return self._root / "data"

    @property
    def log(self) -> str:
        """What it has logged."""
        return (self.data.parent / "log").read_text(errors="replace") if self._root is not None else ""

    def __enter__(self) -> Self:
        try:
            self.start()
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def start(self) -> None:
        """Start it, and wait until it takes connections; its data are kept over ``halt`` and ``kill``.

        Raises:
            RuntimeError: If it does not start; the message ends with its log.
        """
        if self._root is None:
            self._create()
        give_up = time.monotonic() + _START_SECONDS
        for tries in itertools.count(1):
            if self._launch():
                self._known = True
                return
            # Clients of a server that has run know its port; what is left of a killed one may be in the way at first.
            if time.monotonic() > give_up if self._known else tries == 5:
                break
            if not self._known:
                # Another program has taken the free port before the server did.
                self._port = _free_port()
            time.sleep(0.1)  # noqa: TID251
        raise RuntimeError(f"PostgreSQL does not start: {self.log[-2_000:]}")

    def halt(self) -> None:
        """Stop it in good order, and keep the data."""
        # SIGINT: end all connections, then stop.
        self._end(signal.SIGINT)

    def kill(self) -> None:
        """Kill it at once, all its processes, as a loss of power would; keep the data."""
        if self._process is None:
            return
        children = _children(self._process.pid)
        for pid in (self._process.pid, *children):
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                continue
        self._process.wait()
        self._process = None

    def restart(self) -> None:
        """Stop it in good order and start it again, on the same port."""
        self.halt()
        self.start()

    def stop(self) -> None:
        """Stop it and remove its data."""
        # SIGQUIT: at once, without writing everything down first.
        self._end(signal.SIGQUIT)
        root, self._root = self._root, None
        if root is not None:
            shutil.rmtree(root, ignore_errors=True)

    def _end(self, number: int) -> None:
        if self._process is None:
            return
        self._process.send_signal(number)
        try:
            self._process.wait(20)
        except subprocess.TimeoutExpired:
            self.kill()
        self._process = None

    def _create(self) -> None:
        self._root = Path(tempfile.mkdtemp(prefix="lightning-postgres-", dir=self._parent))
        # Sub-processes of other users pass through.
        self._root.chmod(0o755)
        user = _server_user()
        if user is not None:
            shutil.chown(self._root, user)
        words: list[str] = ["--auth=trust"]
        if self._password is not None:
            file = self._root / "password"
            file.write_text(self._password)
            if user is not None:
                shutil.chown(file, user)
            words = ["--auth=scram-sha-256", f"--pwfile={file}"]
        done = subprocess.run(
            [
                self._binaries / "initdb",
                f"--pgdata={self._root / 'data'}",
                "--username=lightning",
                "--encoding=UTF8",
                "--locale=C",
                *words,
            ],
            capture_output=True,
            cwd=self._root,
            env=_environment(),
            text=True,
            check=False,
            user=user,
        )
        if done.returncode:
            raise RuntimeError(f"initdb failed: {done.stderr}")
        self._port = _free_port()

    def _launch(self) -> bool:
        if self._root is None:
            return False
        options: dict[str, Any] = {
            "listen_addresses": "127.0.0.1",
            "port": self._port,
            "unix_socket_directories": str(self._root),
            "fsync": "on",
            "log_min_messages": "warning",
            **self._options,
        }
        words = [word for name, value in options.items() for word in ("-c", f"{name}={value}")]
        with (self._root / "log").open("ab") as log:
            self._process = subprocess.Popen(
                [self._binaries / "postgres", "-D", self.data, *words],
                stdout=log,
                stderr=log,
                stdin=subprocess.DEVNULL,
                cwd=self._root,
                env=_environment(),
                user=_server_user(),
                # Ctrl+C is for the tests, which then stop the server.
                start_new_session=True,
            )
        give_up = time.monotonic() + _START_SECONDS
        while time.monotonic() < give_up:
            if self._process.poll() is not None:
                self._process = None
                return False
            if self._is_ready():
                return True
            # There is no event to wait for.
            time.sleep(0.02)  # noqa: TID251
        self.kill()
        return False

    def _is_ready(self) -> bool:
        """Whether the server says so in the file of its process id."""
        try:
            lines = (self.data / "postmaster.pid").read_text().splitlines()
        except OSError:
            return False
        process = self._process
        return (
            process is not None
            and len(lines) > 7
            and lines[0] == str(process.pid)
            and lines[7].strip() == "ready"
        )


def _children(pid: int) -> Sequence[int]:
    """Return the processes that a process has started; where the system does not say, none."""
    try:
        words = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    except OSError:
        return ()
    return [int(word) for word in words]


def _server_user() -> str | None:
    """Return who must run the server, if we may not: PostgreSQL refuses to run as root."""
    if not hasattr(os, "geteuid") or os.geteuid() != 0:
        return None
    import pwd

    for name in _FALLBACK_USERS:
        try:
            pwd.getpwnam(name)
        except KeyError:
            continue
        return name
    raise RuntimeError("PostgreSQL does not run as root, and there is neither a user postgres nor nobody")


def _environment() -> dict[str, str]:
    # What is set for clients must not reach the server's programs.
    return {name: value for name, value in os.environ.items() if not name.startswith("PG")} | {"LC_ALL": "C"}


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]
