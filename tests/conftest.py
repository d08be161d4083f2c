import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from itertools import count
from pathlib import Path

import certifi
import pytest
from datasette.app import Datasette
from fakes import Recorder
from sqlite_utils.db import quote_identifier

from datasette_vec_gemini import connect, create_index, sqlite3, state

_numbers = count()


@pytest.fixture(scope="session", autouse=True)
def _user(tmp_path_factory) -> Iterator[Path]:
    """The state of the user who runs the tests stays as it is: no process that a test starts may look for it."""
    directory = tmp_path_factory.mktemp("user")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DATASETTE_VEC_STATE_DIR", str(directory))
        patch.setenv("XDG_STATE_HOME", str(directory / "home"))
        yield directory
    assert not (directory / "home").exists()


@pytest.fixture(autouse=True)
def state_dir(_user, monkeypatch) -> Iterator[Path]:
    """A user who has spent nothing today."""
    directory = _user / str(next(_numbers))
    monkeypatch.setenv("DATASETTE_VEC_STATE_DIR", str(directory))
    yield directory
    state.shared().close()


@pytest.fixture
def path(tmp_path):
    return tmp_path / "test.db"


@pytest.fixture
def conn(path) -> Iterator[sqlite3.Connection]:
    connection = connect(path, create=True)
    yield connection
    connection.close()


@pytest.fixture
def write(path) -> Callable[[str], None]:
    """Run SQL in another process with the standard library's module, which has no extension loaded."""

    def run(script: str) -> None:
        program = "import sqlite3, sys; c = sqlite3.connect(sys.argv[1]); c.executescript(sys.argv[2]); c.close()"
        environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
        subprocess.run([sys.executable, "-c", program, str(path), script], check=True, env=environment)

    return run


@pytest.fixture(scope="session")
def unprivileged_python() -> list[str]:
    """The command of an interpreter that obeys the permissions of files, which root's does not."""
    if os.geteuid():
        return [sys.executable]
    rights = "-dac_override,-dac_read_search"
    command = ["setpriv", f"--inh-caps={rights}", f"--bounding-set={rights}", sys.executable]
    try:
        subprocess.run([*command, "-c", ""], check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError) as error:
        pytest.skip(f"root can write what is read-only, and cannot do without that right here: {error}")
    return command


@pytest.fixture(scope="session")
def one_certificate(tmp_path_factory) -> Iterator[None]:
    """To read all of the world's certificates takes most of a client's time, and they are of no use to a fake."""
    file = tmp_path_factory.mktemp("certificates") / "one.pem"
    text = Path(certifi.where()).read_text()
    file.write_text(text[text.index("-----BEGIN") : text.index("-----END CERTIFICATE-----") + 26])
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SSL_CERT_FILE", str(file))
        yield


@pytest.fixture
def service_account(fake, tmp_path, monkeypatch) -> None:
    """Google's application default credentials: a service account whose tokens come from the module's `fake`."""
    rsa = pytest.importorskip("cryptography.hazmat.primitives.asymmetric.rsa")
    serialization = pytest.importorskip("cryptography.hazmat.primitives.serialization")
    pem = rsa.generate_private_key(public_exponent=65537, key_size=2048).private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    account = {
        "type": "service_account",
        "project_id": "p",
        "private_key_id": "1",
        "private_key": pem.decode(),
        "client_email": "robot@p.iam.gserviceaccount.com",
        "client_id": "1",
        "token_uri": f"{fake.url}/token",
    }
    path = tmp_path / "account.json"
    path.write_text(json.dumps(account))
    monkeypatch.setenv("GOOGLE_APPLICATION_CREDENTIALS", str(path))


@pytest.fixture
def recorder() -> Recorder:
    return Recorder()


@pytest.fixture
def docs(conn):
    """A table `docs` of five rows and an index on it, not synced yet."""
    conn.executescript(
        """
        create table docs (id integer primary key, title text, body text, category text, slug text unique);
        insert into docs values
            (1, 'Dates', 'parse a date from text', 'time', 'dates'),
            (2, 'Zones', 'convert a time zone', 'time', 'zones'),
            (3, 'Tables', 'read comma separated values', 'data', 'tables'),
            (4, 'Empty', null, 'data', 'empty'),
            (5, null, '   ', null, null);
        """
    )
    return create_index(conn, "docs", table="docs", columns=["title", "body"], embedder="hashing@64")


@pytest.fixture
def contents(conn) -> Callable[[], dict[str, list[tuple]]]:
    """Everything that the database holds: its schema, and the rows of every table that is no virtual one."""

    def read() -> dict[str, list[tuple]]:
        schema = conn.execute("select type, name, sql from sqlite_master order by name").fetchall()
        ordinary = [name for kind, name, sql in schema if kind == "table" and "virtual" not in sql.lower()]
        return {"schema": schema} | {
            name: conn.execute(f"select * from {quote_identifier(name)}").fetchall() for name in ordinary
        }

    return read


@pytest.fixture
def site() -> Iterator[Callable[..., Datasette]]:
    """Datasette on these files, closed at the end: 1.0 can do that itself, 0.65 leaves threads and connections."""
    opened: list[Datasette] = []

    def open_site(*files: Path, **options) -> Datasette:
        opened.append(Datasette([str(file) for file in files], **options))
        return opened[-1]

    yield open_site
    for datasette in opened:
        if hasattr(datasette, "close"):
            datasette.close()
        else:
            datasette.executor.shutdown()
            for database in datasette.databases.values():
                database.close()
