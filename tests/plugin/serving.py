"""A signed-in actor who sends the forms of a served Datasette as a browser does."""

import contextlib
import http.client
import json
import re
import time
from collections.abc import Callable, Iterator, Sequence
from html import unescape
from http.cookies import SimpleCookie
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

from itsdangerous import URLSafeSerializer
from test_embed_gemini import LOCAL, Server
from test_embed_gemini import served as anybody_s

from datasette_vec_gemini import sqlite3

SECRET = "s"  # of this test's server


class Browser:
    """Keeps cookies and reads tokens from forms."""

    def __init__(self, server: Server, actor: str | None = "root") -> None:
        self.server = server
        self.cookies: dict[str, str] = {}
        if actor:
            self.cookies["ds_actor"] = URLSafeSerializer(SECRET, "actor").dumps({"a": {"id": actor}})

    def send(
        self, method: str, path: str, fields: Sequence[tuple[str, str]] = (), headers: dict[str, str] | None = None
    ) -> tuple[int, str, str]:
        """Status, Location and body."""
        sent = LOCAL | ({"cookie": "; ".join(f"{k}={v}" for k, v in self.cookies.items())} if self.cookies else {})
        body = None
        if method == "POST":
            body, sent = urlencode(fields), sent | {"content-type": "application/x-www-form-urlencoded"}
        elif fields:
            path = f"{path}?{urlencode(fields)}"
        with contextlib.closing(http.client.HTTPConnection("127.0.0.1", self.server.port, timeout=60)) as connection:
            connection.request(method, path, body=body, headers=sent | (headers or {}))
            response = connection.getresponse()
            for name, value in response.getheaders():
                if name.lower() == "set-cookie":
                    self.cookies |= {key: morsel.value for key, morsel in SimpleCookie(value).items()}
            return response.status, response.getheader("location") or "", response.read().decode()

    def get(self, path: str, fields: Sequence[tuple[str, str]] = ()) -> str:
        status, _, body = self.send("GET", path, fields)
        assert status == 200, (path, status, body)
        return body

    def json(self, path: str, fields: Sequence[tuple[str, str]] = ()) -> Any:
        return json.loads(self.get(path, fields))

    def press(self, page: str, label: str, **typed: str) -> tuple[int, str, str]:
        """Send the form of a page's HTML whose submit button has this label."""
        (form,) = [form for form in _FORM.findall(page) if f'value="{label}"' in form]
        action = re.search(r'action="([^"]*)"', form)[1]
        fields = [
            (unescape(name), unescape(value))
            for name, value in re.findall(r'<input type="hidden" name="([^"]*)" value="([^"]*)">', form)
        ]
        return self.send("POST", unescape(action), [*fields, *typed.items()])


_FORM = re.compile(r'<form [^>]*method="post".*?</form>', re.DOTALL)


@contextlib.contextmanager
def served(*files: Path, options: Sequence[str] = (), **more: Any) -> Iterator[Server]:
    """`datasette FILES…` whose actors can be signed in, root among them."""
    with anybody_s(*files, options=["--root", *options], DATASETTE_SECRET=SECRET, **more) as server:
        yield server


def until(found: Callable[[], Any], seconds: float = 60) -> Any:
    """What is found once it is true."""
    end = time.monotonic() + seconds
    while not (value := found()):
        assert time.monotonic() < end, f"not within {seconds} seconds"
        time.sleep(0.05)
    return value


def table(file: Path, rows: int, *, name: str = "docs", text: str = "how to parse date number") -> Path:
    """A table of so many different texts."""
    with contextlib.closing(sqlite3.connect(file)) as conn:
        conn.execute(f"create table {name} (id integer primary key, title text, body text, category text, day text)")
        conn.executemany(
            f"insert into {name} values (?, ?, ?, ?, ?)",
            [
                (n, f"Title {n}", f"{text} {n}", ("time", "data")[n % 2], f"2026-11-{n % 28 + 1:02}")
                for n in range(1, rows + 1)
            ],
        )
        conn.commit()
    return file
