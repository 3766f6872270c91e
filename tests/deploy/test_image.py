"""What an image would hold: the Dockerfile's own steps, done in folders of this machine.

No image is built here: that needs a Docker engine. Unseen remain the base image, its packages and CUDA.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest

from tests.conftest import BuildCheckpoint
from tests.deploy import dockerfile
from tests.http.conftest import READY_SECONDS, free_port

NOT_SHIPPED = ("README.md", "LICENSE", "NOTICE", "pyproject.toml", "constraints.txt", "docker/healthcheck.py")


def test_a_wheel_holds_every_file_of_the_packages(tmp_path: Path) -> None:
    """A checkout has what a package forgets to ship: kernels, the page, the demo's weights."""
    context = dockerfile.build_context(tmp_path / "context")
    wanted = {str(path.relative_to(context)) for path in context.rglob("*") if path.is_file()}
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation"]
    result = subprocess.run(
        [*command, "--wheel-dir", str(tmp_path), str(context)], capture_output=True, text=True
    )
    assert result.returncode == 0, result.stderr
    [wheel] = tmp_path.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        missing = wanted - set(archive.namelist())
    assert {name for name in missing if not name.endswith(NOT_SHIPPED)} == set()


def test_the_image_runs_as_nobody_in_particular_and_asks_itself_whether_it_is_ready() -> None:
    final = dockerfile.read()[-1]
    user, _, group = final.last("USER").partition(":")
    assert int(user) >= 1000, "a number, so that an orchestrator can see that it is not root"
    assert int(group) >= 1000
    assert final.argv("ENTRYPOINT") + final.argv("CMD") == ["specvlm", "serve"]
    assert "--start-period=" in final.last("HEALTHCHECK")


@dataclass(frozen=True, slots=True)
class Image:
    """``folder`` belongs to the user ``uid``, who runs everything; ``None``: the one who runs the tests."""

    folder: Path
    uid: int | None

    def environment(self, **more: str) -> dict[str, str]:
        final = dockerfile.read()[-1].environment
        path = f"{self.folder / 'specvlm' / 'bin'}:/usr/bin:/bin"
        cache = {"XDG_CACHE_HOME": str(self.folder / "cache"), "HOME": str(self.folder / "cache")}
        return final | cache | {"PATH": path, "SPECVLM_HOST": "127.0.0.1", "HF_HUB_OFFLINE": "1"} | more

    def start(self, command: list[str], environment: dict[str, str], log: Path) -> subprocess.Popen[bytes]:
        program = shutil.which(command[0], path=environment["PATH"])
        assert program is not None, f"{command[0]} was not installed"
        words = [word.replace("/opt/specvlm", str(self.folder / "specvlm")) for word in command[1:]]
        groups = None if self.uid is None else []
        with log.open("wb") as output:
            return subprocess.Popen(
                [program, *words],
                cwd=self.folder / "cache",
                env=environment,
                user=self.uid,
                group=self.uid,
                extra_groups=groups,
                stdout=output,
                stderr=output,
                start_new_session=True,
            )


def usable_python() -> Path:
    """A Python that a user other than this one may run, where this one is root."""
    for path in (Path("/usr/bin/python3"), Path(getattr(sys, "_base_executable", sys.executable))):
        check = "import ensurepip, sys; sys.exit(sys.version_info < (3, 11))"
        if path.exists() and subprocess.run([path, "-c", check], capture_output=True).returncode == 0:
            return path
    pytest.fail("no Python here can make virtual environments")


@pytest.fixture(scope="module")
def image() -> Iterator[Image]:
    """What the build stage leaves in /opt/specvlm, and an empty /cache."""
    stages = {stage.name: stage for stage in dockerfile.read()}
    folder = Path(tempfile.mkdtemp(prefix="specvlm-image-"))  # pytest's own are closed to other users
    try:
        folder.chmod(0o755)
        context = dockerfile.build_context(folder / "context")
        places = {"/opt/specvlm": folder / "specvlm", "/build": folder / "build"}
        path = f"{usable_python().parent}:/usr/bin:/bin"
        kept = {name: os.environ[name] for name in os.environ if name.startswith(("PIP_", "SSL_", "HOME"))}
        dockerfile.build(stages["build"], context, places, {"PATH": path, "TORCH_INDEX": ""} | kept)
        shutil.copy(context / "docker" / "healthcheck.py", folder / "specvlm")
        (folder / "cache").mkdir(mode=0o700)
        uid = int(stages[""].last("USER").partition(":")[0]) if os.getuid() == 0 else None
        if uid is not None:
            os.chown(folder / "cache", uid, uid)
        yield Image(folder, uid)
    finally:
        shutil.rmtree(folder)


@pytest.mark.slow
@pytest.mark.network
@pytest.mark.timeout(1200)
def test_the_installed_program_serves_and_the_health_check_tells(
    image: Image, tiny: BuildCheckpoint, tmp_path: Path
) -> None:
    final = dockerfile.read()[-1]
    model = image.folder / "model"
    shutil.copytree(tiny("llava"), model)
    subprocess.run(["chmod", "-R", "a+rX", str(model)], check=True)
    port = free_port()
    environment = image.environment(
        SPECVLM_MODEL=str(model), SPECVLM_PORT=str(port), SPECVLM_API_KEY="secret"
    )

    def healthy() -> bool:
        check = final.argv("HEALTHCHECK")
        return image.start(check, environment, tmp_path / "health.log").wait(timeout=30) == 0

    assert not healthy()
    command = final.argv("ENTRYPOINT") + final.argv("CMD")
    server = image.start(command, environment, tmp_path / "server.log")
    try:
        deadline = time.monotonic() + READY_SECONDS
        while not healthy():
            log = (tmp_path / "server.log").read_text()
            assert time.monotonic() < deadline and server.poll() is None, log[-3000:]  # noqa: PT018
            time.sleep(0.5)
        answer = httpx.post(
            f"http://127.0.0.1:{port}/v1/chat/completions",
            json={"messages": [{"role": "user", "content": "hello"}], "max_tokens": 4},
            headers={"Authorization": "Bearer secret"},
            timeout=60,
        )
        assert answer.status_code == 200, answer.text
        assert list((image.folder / "cache" / "specvlm").rglob("cpu-*.so")), "the kernels were not compiled"
        server.send_signal(signal.SIGTERM)
        assert server.wait(timeout=40) in (0, -signal.SIGTERM)
    finally:
        if server.poll() is None:
            os.killpg(server.pid, signal.SIGKILL)
            server.wait()
