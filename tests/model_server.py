"""A real `transformers serve` of a model folder, for tests; needs the packages fastapi and uvicorn."""

import contextlib
import importlib.util
import os
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest


@contextlib.contextmanager
def serving(folder: Path, *, patience: float = 250.0) -> Iterator[str]:
    """Serves a model on the CPU, on a free port of this machine, for the length of a ``with`` block.

    Args:
        folder: The model and its tokenizer, with a chat template; also the name that the server knows it by.
        patience: Seconds until the server must be ready.

    Yields:
        The ``base_url``.
    """
    for package in ("fastapi", "uvicorn"):
        if importlib.util.find_spec(package) is None:
            pytest.skip(f"{package} is not installed")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-c", "from transformers.cli.transformers import main; main()", "serve", str(folder)]
    command += ["--host", "127.0.0.1", "--port", str(port), "--device", "cpu", "--dtype", "float32"]
    log = folder.parent / f"{folder.name}-serve.log"
    with log.open("w") as handle:
        process = subprocess.Popen(
            command, stdout=handle, stderr=subprocess.STDOUT, env={**os.environ, "HF_HUB_OFFLINE": "1"}
        )
        try:
            _await_health(f"http://127.0.0.1:{port}/health", process, patience, log)
            yield f"http://127.0.0.1:{port}/v1"
        finally:
            process.kill()
            process.wait()


def _await_health(url: str, process: subprocess.Popen[bytes], patience: float, log: Path) -> None:
    """Waits until a server answers."""
    end = time.monotonic() + patience
    while time.monotonic() < end:
        if process.poll() is not None:
            break
        with contextlib.suppress(OSError), urllib.request.urlopen(url, timeout=5) as response:
            if response.status == 200:
                return
        time.sleep(0.25)
    raise RuntimeError(f"transformers serve is not ready: {log.read_text()[-2000:]}")
