"""The browser's module as a package: its types, its size, and what npm makes of its folder."""

from __future__ import annotations

import gzip
import json
import os
import re
import shutil
import subprocess
import tarfile
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from broker import __version__
from broker.cli import main

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "broker" / "client"
MODULE, TYPES = PACKAGE / "client.js", PACKAGE / "client.d.ts"
CHECKS = Path(__file__).parent / "typescript"
TOOL = ROOT / ".tools" / "typescript"
LIMIT = 3072

Done = subprocess.CompletedProcess[str]


def needed(found: bool, what: str) -> None:
    """Without it a test is skipped, and says so; in CI it fails."""
    if not found:
        reason = f"{what}: broker/client was NOT tested with it"
        if os.environ.get("CI"):
            pytest.fail(reason)
        pytest.skip(reason)


def run(*command: str | Path, cwd: Path, **env: str) -> Done:
    return subprocess.run(
        [str(word) for word in command],
        cwd=cwd, env={**os.environ, **env}, stdin=subprocess.DEVNULL,
        capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip


@pytest.fixture(name="tsc", scope="module")
def _tsc() -> Path:
    """The TypeScript that the lock file pins."""
    program = TOOL / "node_modules" / ".bin" / "tsc"
    lock = CHECKS / "package-lock.json"
    known = program.exists() and (TOOL / "package-lock.json").read_bytes() == lock.read_bytes()
    needed(known, "the pinned TypeScript is not installed (`make typescript` does that)")
    needed(shutil.which("node") is not None, "node is not installed")
    return program


@pytest.fixture(name="installed", scope="module")
def _installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A project that has installed the packed folder, and nothing else."""
    needed(shutil.which("npm") is not None, "npm is not installed")
    place, project = tmp_path_factory.mktemp("packed"), tmp_path_factory.mktemp("project")
    quiet = {"npm_config_cache": str(place / "cache"), "npm_config_update_notifier": "false"}
    packed = run("npm", "pack", "./broker/client", "--pack-destination", place, cwd=ROOT, **quiet)
    assert packed.returncode == 0, packed.stderr
    [tarball] = place.glob("*.tgz")
    assert tarball.name == f"token-broker-client-{__version__}.tgz"
    (project / "package.json").write_text('{"private": true, "type": "module"}')
    options = ["--offline", "--ignore-scripts", "--no-audit", "--no-fund"]
    added = run("npm", "install", *options, tarball, cwd=project, **quiet)
    assert added.returncode == 0, added.stderr
    shutil.copy(tarball, project / "packed.tgz")
    return project


def test_the_module_is_under_three_kilobytes(capsys: pytest.CaptureFixture[str]) -> None:
    """What goes over the wire, gzip -9, is under 3 072 bytes."""
    module = MODULE.read_bytes()
    size = len(gzip.compress(module, 9, mtime=0))
    with capsys.disabled():
        print(f"\nclient.js: {size} bytes gzipped of {LIMIT - 1} ({len(module)} as it is)")
    assert size < LIMIT


def test_the_module_does_nothing_that_a_strict_page_forbids() -> None:
    """No eval, no HTML from text, no storage, no cookie and no console is as much as named."""
    module = MODULE.read_text()
    forbidden = (
        r"\beval\b", r"\bFunction\s*\(", "innerHTML", "outerHTML", "insertAdjacentHTML",
        r"document\.write", "localStorage", "sessionStorage", "indexedDB", r"document\.cookie",
        r"\bconsole\b", r"set(Timeout|Interval)\(\s*[\"'`]",
    )  # fmt: skip
    assert not [word for word in forbidden if re.search(word, module)]
    assert not re.search(r"^\s*import\b(?!\.meta)", module, re.MULTILINE)


def test_the_module_reads_well() -> None:
    """No line is longer than a hundred characters, none is indented by spaces, which cost thirty
    bytes of what goes over the wire, and none ends in one."""
    for line in MODULE.read_text().splitlines():
        assert len(line.expandtabs(2)) <= 100, line
        assert not line.startswith("  ")
        assert line == line.rstrip()


def test_the_modules_types_hold(tsc: Path) -> None:
    """`tsc --checkJs --strict --noEmit` finds nothing in client.js."""
    options = json.loads((CHECKS / "tsconfig.json").read_text())["compilerOptions"]
    assert options["checkJs"] is options["strict"] is options["noEmit"] is True
    assert "@ts-nocheck" not in MODULE.read_text()
    assert "@ts-ignore" not in MODULE.read_text()
    done = run(tsc, "-p", CHECKS, cwd=ROOT)
    assert done.returncode == 0, done.stdout


def test_the_types_are_those_of_the_module(tsc: Path, tmp_path: Path) -> None:
    """client.d.ts is to the byte what tsc makes of client.js (`make client-types` writes it)."""
    options = ["--noEmit", "false", "--emitDeclarationOnly", "--outDir", str(tmp_path)]
    done = run(tsc, "-p", CHECKS, *options, cwd=ROOT)
    assert (tmp_path / "client.d.ts").exists(), done.stdout
    assert [path.name for path in tmp_path.iterdir()] == ["client.d.ts"]
    assert TYPES.read_text() == (tmp_path / "client.d.ts").read_text(), "run `make client-types`"


def test_the_readme_pins_this_version() -> None:
    """The `integrity` in the README is that of the module as it stands, as the command says it."""
    told = CliRunner().invoke(main, ["client"]).output
    [line] = [line for line in told.splitlines() if line.startswith("sha384-")]
    assert f'integrity="{line}"' in (ROOT / "README.md").read_text(), line


@pytest.mark.parametrize(
    "resolution",
    [["esnext", "bundler"], ["nodenext", "nodenext"]],
    ids=lambda words: words[-1],
)
def test_a_typescript_program_uses_every_part(
    tsc: Path, installed: Path, resolution: list[str]
) -> None:
    """A program that uses the installed package's whole public face compiles, strictly, and its
    mistakes are each found."""
    shutil.copy(CHECKS / "uses.ts", installed)
    module, found = resolution
    options = ["--target", "es2022", "--lib", "es2022,dom,dom.iterable", "--types", ""]
    strict = ["--strict", "--noEmit", "--exactOptionalPropertyTypes", "--ignoreConfig"]
    how = ["--module", module, "--moduleResolution", found]
    done = run(tsc, *strict, *options, *how, "uses.ts", cwd=installed)
    assert done.returncode == 0, done.stdout


def test_the_folder_packs_what_it_should(installed: Path) -> None:
    """`npm pack` packs the module, its types, what describes it and its licence; nothing else."""
    with tarfile.open(installed / "packed.tgz") as tar:
        names = {name.removeprefix("package/") for name in tar.getnames()}
    said = {name for name in ("LICENSE", "README.md") if (PACKAGE / name).exists()}
    assert names == {"client.js", "client.d.ts", "package.json"} | said
    assert (PACKAGE / "LICENSE").read_bytes() == (ROOT / "LICENSE").read_bytes()


def test_the_package_says_what_it_is() -> None:
    """An ES module without side effects or dependencies, of the broker's own version."""
    told: dict[str, Any] = json.loads((PACKAGE / "package.json").read_text())
    assert (told["name"], told["version"]) == ("token-broker-client", __version__)
    assert (told["type"], told["sideEffects"]) == ("module", False)
    assert told["license"] == "Apache-2.0"
    assert told["exports"]["."] == {"types": "./client.d.ts", "default": "./client.js"}
    assert not [key for key in told if "ependencies" in key or key in ("scripts", "bin")]


IMPORTED = """
const before = Reflect.ownKeys(globalThis).length;
const touched = [];
for (const name of ["fetch", "setTimeout", "setInterval", "BroadcastChannel"]) {
  const real = globalThis[name];
  globalThis[name] = function (...given) { touched.push(name); return Reflect.apply(real, this, given); };
}
const module = await import("token-broker-client");
console.log(JSON.stringify({
  names: Object.keys(module).sort(),
  kinds: [typeof module.createSessionClient, module.SessionError.prototype instanceof Error],
  added: Reflect.ownKeys(globalThis).length - before,
  touched,
  waits: process.getActiveResourcesInfo().filter((name) => /Timeout|MessagePort|TCP/.test(name)),
  dom: typeof document,
}));
"""


def test_importing_it_does_nothing(installed: Path) -> None:
    """Node, which has no DOM, imports the package by its name; that adds no global, starts no timer
    and opens nothing."""
    needed(shutil.which("node") is not None, "node is not installed")
    (installed / "imports.js").write_text(IMPORTED)
    done = run("node", "imports.js", cwd=installed)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == {
        "names": ["SessionError", "createSessionClient"],
        "kinds": ["function", True],
        "added": 0,
        "touched": [],
        "waits": [],
        "dom": "undefined",
    }


def test_the_lock_file_names_no_host() -> None:
    """TypeScript is pinned to one version by hashes, wherever npm is set to get it from."""
    lock = json.loads((CHECKS / "package-lock.json").read_text())["packages"]
    pinned = json.loads((CHECKS / "package.json").read_text())["devDependencies"]
    assert re.fullmatch(r"\d+\.\d+\.\d+", pinned["typescript"])
    assert lock["node_modules/typescript"]["version"] == pinned["typescript"]
    for name, one in lock.items():
        assert not name or re.match("sha512-", one["integrity"])
        assert "resolved" not in one
