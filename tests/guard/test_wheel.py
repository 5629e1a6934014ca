"""The wheel, made from the source distribution, outside of a clone."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import venv
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PACKAGES = ("guard", "steering", "classifiers", "server")
FILES = ("pyproject.toml", "README.md", "LICENSE", "NOTICE", "config.toml")
SHIPPED = (
    "config.toml",
    "examples/harry-potter/steer.safetensors",
    "examples/medication-dosing/steer.safetensors",
    "examples/emoji/fitted/knife-cgce.safetensors",
    "examples/emoji/weights/unet/diffusion_pytorch_model.safetensors",
    "examples/emoji/tokens/weights/model.safetensors",
    "examples/screens/fitted/weapons.safetensors",
)


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The Python of an environment with the wheel, and with the packages of this one behind it."""
    folder = tmp_path_factory.mktemp("wheel")
    source = folder / "source"
    ignored = shutil.ignore_patterns("__pycache__", "portraits", "baselines", "attacks")
    for name in (*PACKAGES, "examples"):
        shutil.copytree(ROOT / name, source / name, ignore=ignored)
    for name in FILES:
        shutil.copy(ROOT / name, source / name)
    _build("sdist", source, folder)
    (archive,) = folder.glob("*.tar.gz")
    with tarfile.open(archive) as packed:
        packed.extractall(folder / "unpacked", filter="data")
    (unpacked,) = (folder / "unpacked").iterdir()
    _build("wheel", unpacked, folder)
    (wheel,) = folder.glob("*.whl")
    venv.create(folder / "venv", with_pip=False)
    python = folder / "venv" / "bin" / "python"
    pip = [sys.executable, "-m", "pip", "--python", str(python), "install", "--no-deps"]
    subprocess.run([*pip, "--no-index", "--quiet", str(wheel)], check=True, timeout=300)
    (site,) = (folder / "venv" / "lib").glob("python*/site-packages")
    (site / "behind.pth").write_text(sysconfig.get_path("purelib") + "\n")
    return python


def _build(kind: str, source: Path, out: Path) -> None:
    program = f"import setuptools.build_meta as b; b.build_{kind}({str(out)!r})"
    subprocess.run(
        [sys.executable, "-c", program], cwd=source, check=True, timeout=300, capture_output=True
    )


def _run(python: Path, program: str, folder: Path) -> str:
    done = subprocess.run(
        [python, "-c", program], cwd=folder, check=True, timeout=300, capture_output=True, text=True
    )
    return done.stdout


def test_the_demos_files_are_found_in_the_environment(installed: Path, tmp_path: Path) -> None:
    program = f"""
import json
from guard.models.shipped import shipped
print(json.dumps([str(shipped(name)) for name in {SHIPPED!r}]))
"""
    paths = [Path(path) for path in json.loads(_run(installed, program, tmp_path))]
    root = installed.parents[1].resolve() / "share" / "inference-guard"
    assert paths == [root / name for name in SHIPPED]
    for path, name in zip(paths, SHIPPED, strict=True):
        assert path.read_bytes() == (ROOT / name).read_bytes()


def test_the_shipped_configuration_holds(installed: Path, tmp_path: Path) -> None:
    program = """
from guard.config.schema import load_config
from guard.models.shipped import shipped
from guard.commands.configuration.soundness import findings
config = load_config(shipped("config.toml"))
print(len(config.guards), findings(config).problems)
"""
    assert _run(installed, program, tmp_path) == "5 []\n"
