"""Places for catalogs."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Iterator

import pytest

from servers import new_bucket, running_postgres


@pytest.fixture(scope="session")
def postgres_server() -> Iterator[str]:
    with running_postgres() as url:
        yield url


@pytest.fixture
def postgres(postgres_server: str) -> str:
    """The URL of an empty database."""
    import psycopg

    name = f"t{uuid.uuid4().hex[:12]}"
    with psycopg.connect(postgres_server, autocommit=True) as connection:
        connection.execute(f"CREATE DATABASE {name}")
    return postgres_server.rsplit("/", 1)[0] + f"/{name}"


@pytest.fixture
def bucket(s3_server: str, monkeypatch: pytest.MonkeyPatch) -> str:
    return new_bucket(s3_server, monkeypatch)


@pytest.fixture(params=["sqlite", "postgres"])
def registry(request: pytest.FixtureRequest) -> Callable[[], str | None]:
    """The URL of a registry, None for a catalog's own."""

    def url() -> str | None:
        return None if request.param == "sqlite" else str(request.getfixturevalue("postgres"))

    return url
