"""What a wheel and a source distribution carry: all of the package, nothing that lies about."""

from __future__ import annotations

import tarfile
from email import message_from_bytes
from pathlib import Path
from zipfile import ZipFile

import pytest
from packaging_checkout import build, copy, expected_in_wheel, run

import dsv4_mlx

STRAYS = (
    "convert/stray.safetensors", "metal/stray.tmp", "dsv4_mlx/__pycache__/stray.cpython-311.pyc",
    "dsv4_mlx/.DS_Store", "build/lib/x.py", "dist/old.whl",
)  # fmt: skip


@pytest.fixture(scope="module")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return copy(tmp_path_factory.mktemp("checkout") / "dsv4-mlx")


@pytest.fixture(scope="module")
def expected(checkout: Path) -> set[str]:
    return expected_in_wheel(checkout)


@pytest.fixture(scope="module")
def littered(checkout: Path, expected: set[str]) -> Path:
    """The checkout with files that git ignores."""
    assert expected
    for name in STRAYS:
        path = checkout / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"not to be shipped")
    return checkout


@pytest.fixture(scope="module")
def wheel(littered: Path, tmp_path_factory: pytest.TempPathFactory) -> ZipFile:
    out = tmp_path_factory.mktemp("wheel") / "out"
    return ZipFile(build(littered, out, "--wheel", "--no-isolation"))


def contents(wheel: ZipFile) -> set[str]:
    return {name for name in wheel.namelist() if ".dist-info/" not in name}


def metadata(wheel: ZipFile, name: str) -> bytes:
    return wheel.read(next(n for n in wheel.namelist() if n.endswith(f".dist-info/{name}")))


def test_wheel_holds_the_package_and_nothing_else(wheel: ZipFile, expected: set[str]) -> None:
    assert contents(wheel) == expected
    assert {name.split("/")[0] for name in contents(wheel)} == {"dsv4_mlx"}
    for name in ("py.typed", "convert/run.py", "metal/README.md", "engine/generate.py", "demo/config.json"):
        assert f"dsv4_mlx/{name}" in expected


def test_wheel_says_what_it_needs(wheel: ZipFile) -> None:
    found = message_from_bytes(metadata(wheel, "METADATA"))
    assert found["Name"] == "dsv4-mlx"
    assert found["Version"] == dsv4_mlx.__version__
    assert found["Requires-Python"] == ">=3.11"
    needs = {str(need).split(";")[0].strip(): str(need) for need in found.get_all("Requires-Dist", [])}
    on_mac = next(need for name, need in needs.items() if name.startswith(("mlx<", "mlx>")))
    assert "arm64" in on_mac
    # An Intel Mac must be able to install it, to be told by it that it can't run.
    for name in ("mlx-lm", "deepseek-recipe"):
        assert any(key.startswith(name) and "arm64" in need for key, need in needs.items())
    assert b"dsv4-mlx = dsv4_mlx.cli.main:main" in metadata(wheel, "entry_points.txt")
    assert b"Root-Is-Purelib: true" in metadata(wheel, "WHEEL")


def test_sdist_makes_the_same_wheel(
    littered: Path, wheel: ZipFile, expected: set[str], tmp_path: Path
) -> None:
    sdist = build(littered, tmp_path / "sdist", "--sdist", "--no-isolation")
    with tarfile.open(sdist) as archive:
        names = {name.split("/", 1)[1] for name in archive.getnames()}
    (tmp_path / "unpacked").mkdir()
    run("tar", "-xzf", str(sdist), "-C", str(tmp_path / "unpacked"), cwd=tmp_path)
    assert not names & set(STRAYS)
    for name in ("Makefile", "tests/conftest.py", "docs/model.md", "bench/long_run.py", ".ci/run"):
        assert name in names
    unpacked = next((tmp_path / "unpacked").iterdir())
    again = ZipFile(build(unpacked, tmp_path / "wheel", "--wheel", "--no-isolation"))
    assert contents(again) == expected
    assert all(again.read(name) == wheel.read(name) for name in expected)
