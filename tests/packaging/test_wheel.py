"""The archives users install from: what is in them, and what no file of the project may name."""

from __future__ import annotations

import re
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from collections.abc import Iterator
from email import message_from_bytes
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PLACES_IN_THE_WHEEL = {
    "toolkit/ptk/": "ptk/",
    "kernels/ptk_kernels/": "ptk_kernels/",
    "catalog/ptk_catalog/": "ptk_catalog/",
    "specs/": "ptk/starter/specs/",
}
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
DIST_INFO = f"preference_toolkit-{PROJECT['version']}.dist-info"

# Written in pieces, so that this file does not name them either.
FORBIDDEN = re.compile(
    "|".join(
        [
            "pypi" + r"\.org",
            "python" + "hosted",
            r"https?://\S+/" + r"simple\b",
            *(r"(?<![\w.})-])/" + folder + "/" for folder in ["work", "root", "opt"]),
        ]
    )
)


def project_files() -> list[str]:
    """Return the paths of all files that belong to the project: tracked, or new and not ignored."""
    listing = subprocess.run(
        ["git", "-c", "safe.directory=*", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    if listing.returncode != 0:
        pytest.skip("only a git checkout tells which files belong to the project")
    return sorted(name for name in listing.stdout.split("\0") if name and (ROOT / name).is_file())


def build(folder: Path, *arguments: str) -> None:
    command = [sys.executable, "-m", "build", "--no-isolation", *arguments, "--outdir", str(folder), str(ROOT)]
    subprocess.run(command, check=True, capture_output=True)


@pytest.fixture(scope="module")
def archives(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with the source archive, and the wheel that was built from it."""
    folder = tmp_path_factory.mktemp("dist")
    build(folder)
    return folder


@pytest.fixture(scope="module")
def wheel(archives: Path) -> Iterator[zipfile.ZipFile]:
    with zipfile.ZipFile(archives / f"preference_toolkit-{PROJECT['version']}-py3-none-any.whl") as archive:
        yield archive


def test_the_wheel_holds_the_three_packages_and_the_starter_and_nothing_else(wheel: zipfile.ZipFile) -> None:
    held = {name for name in wheel.namelist() if not name.startswith(DIST_INFO)}
    assert held == {
        place + name.removeprefix(source)
        for name in project_files()
        for source, place in PLACES_IN_THE_WHEEL.items()
        if name.startswith(source)
    }


def test_the_wheel_names_its_licence_command_and_extras(wheel: zipfile.ZipFile) -> None:
    metadata = message_from_bytes(wheel.read(f"{DIST_INFO}/METADATA"))
    assert metadata["License-Expression"] == "Apache-2.0"
    assert set(metadata.get_all("Provides-Extra", [])) == {
        "all",
        "cpu",
        "dask",
        "delta",
        "dev",
        "gpu",
        "hub",
        "postgres",
        "s3",
        "train",
    }
    assert wheel.read(f"{DIST_INFO}/licenses/LICENSE") == (ROOT / "LICENSE").read_bytes()
    assert "[console_scripts]\nptk = ptk.cli:main\n" in wheel.read(f"{DIST_INFO}/entry_points.txt").decode()


def test_a_wheel_built_from_the_checkout_itself_is_the_same(wheel: zipfile.ZipFile, tmp_path: Path) -> None:
    build(tmp_path, "--wheel")
    with zipfile.ZipFile(next(tmp_path.glob("*.whl"))) as direct:
        assert {name: direct.read(name) for name in direct.namelist()} == {name: wheel.read(name) for name in wheel.namelist()}


def test_the_source_archive_holds_the_whole_project(archives: Path) -> None:
    top = f"preference_toolkit-{PROJECT['version']}"
    with tarfile.open(archives / f"{top}.tar.gz") as archive:
        held = {name.removeprefix(f"{top}/") for name in archive.getnames()}
    assert [name for name in project_files() if name not in held] == []


def test_no_file_names_a_package_registry_or_a_path_of_one_machine() -> None:
    found = [
        f"{name}:{number}: {line.strip()[:100]}"
        for name in project_files()
        for number, line in enumerate((ROOT / name).read_text(encoding="utf-8", errors="replace").splitlines(), 1)
        if FORBIDDEN.search(line)
    ]
    assert found == []
