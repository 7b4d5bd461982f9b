"""A PostgreSQL server of the tests' own, on loopback, with its data in a temporary folder."""

from __future__ import annotations

import os
import pwd
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from pathlib import Path

import psycopg

FOLDERS = (*sorted(Path("/usr/lib/postgresql").glob("*/bin"), reverse=True), Path("/usr/bin"))
SECONDS = 30


def programs() -> Path | None:
    """Return the folder of the newest installed server, None if there is none."""
    return next((folder for folder in FOLDERS if (folder / "initdb").exists()), None)


class PostgresServer:
    """A server that may be stopped and started again on the same data.

    Its text order is that of a language, not of code points, as many servers' is; commits do not
    wait for the disk unless ``durable``.
    """

    def __init__(self, folder: Path, *, durable: bool = False) -> None:
        self.programs, self.durable = folder, durable
        self.data = Path(tempfile.mkdtemp(prefix="rayal-postgres-"))
        self.user = "postgres" if os.geteuid() == 0 else None  # the server refuses to be root's
        if self.user is not None:
            os.chown(self.data, pwd.getpwnam(self.user).pw_uid, -1)
        locale = ("--locale=C.UTF-8", "--locale-provider=icu", "--icu-locale=en")
        words = ("-D", str(self.data), "-A", "trust", "-U", "rayal", "-E", "UTF8", "--no-sync")
        self._run("initdb", *words, *locale)
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = int(free.getsockname()[1])
        self._made = 0
        self.start()

    def start(self) -> None:
        """Start the server, and wait until it answers."""
        sync = "on" if self.durable else "off"
        options = (f"fsync={sync}", f"synchronous_commit={sync}", "listen_addresses=127.0.0.1",
                   f"unix_socket_directories={self.data}", "max_connections=200")  # fmt: skip
        self.log = (self.data.parent / f"{self.data.name}.log").open("ab")
        self.process = subprocess.Popen(
            [self.programs / "postgres", "-D", self.data, "-p", str(self.port),
             *(word for option in options for word in ("-c", option))],
            user=self.user, stdout=self.log, stderr=self.log, cwd="/",
        )  # fmt: skip
        end = time.monotonic() + SECONDS
        while True:
            try:
                psycopg.connect(self._dsn("postgres")).close()
                return
            except psycopg.OperationalError:
                if time.monotonic() > end or self.process.poll() is not None:
                    self.end()
                    raise
                time.sleep(0.05)

    def stop(self, *, at_once: bool = False) -> None:
        """End the server; ``at_once`` as a crash would, to be recovered from at the next start."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGQUIT if at_once else signal.SIGINT)
            self.process.wait(SECONDS)
        self.log.close()

    def end(self) -> None:
        """Stop the server, and remove its data."""
        self.stop(at_once=True)
        Path(self.log.name).unlink(missing_ok=True)
        shutil.rmtree(self.data)

    def database(self) -> str:
        """Make an empty database, and return its URL."""
        self._made += 1
        name = f"rayal{self._made}"
        with psycopg.connect(self._dsn("postgres"), autocommit=True) as connection:
            connection.execute(f"CREATE DATABASE {name}".encode())
        return f"postgresql+psycopg://rayal@127.0.0.1:{self.port}/{name}"

    def _dsn(self, name: str) -> str:
        return f"host=127.0.0.1 port={self.port} user=rayal dbname={name} connect_timeout=5"

    def _run(self, program: str, *words: str) -> None:
        subprocess.run(
            [self.programs / program, *words], user=self.user, check=True, capture_output=True,
            cwd="/",
        )  # fmt: skip
