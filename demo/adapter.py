"""Reads and writes the file of trained weights: tower, projector and low-rank delta in float16 safetensors.

Knows the file's layout (tensor names as in the assembled model, ``delta.<layer>.down|up``), but not training.
"""

import json
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).parent / "weights"
FILE = "adapter.safetensors"
DIGEST = "adapter.sha256"
FORMAT = "specvlm-demo-1"


def save_weights(folder: Path, tensors: dict[str, Any], vision: dict[str, Any]) -> Path:
    """Write ``tensors`` (any float dtype, saved as float16) and the tower's configuration to a file."""
    from safetensors.torch import save_file

    from demo.cache import sha256

    folder.mkdir(parents=True, exist_ok=True)
    halves = {name: tensor.detach().half().contiguous() for name, tensor in tensors.items()}
    path = folder / FILE
    save_file(halves, path, metadata={"format": FORMAT, "vision_config": json.dumps(vision)})
    (folder / DIGEST).write_text(f"{sha256(path)}  {FILE}\n")
    return path


def read_weights(folder: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """Read (tensors, tower configuration). Raises ValueError if the file has another format."""
    from safetensors import safe_open

    with safe_open(folder / FILE, "pt") as file:
        metadata = file.metadata() or {}
        if metadata.get("format") != FORMAT:
            raise ValueError(f"{folder / FILE} is not in the format {FORMAT}")
        return {name: file.get_tensor(name) for name in file.keys()}, json.loads(metadata["vision_config"])  # noqa: SIM118


def split(tensors: dict[str, Any]) -> tuple[dict[str, Any], dict[str, tuple[Any, Any]]]:
    """Split into (tensors of tower and projector, {layer: (down [r, in], up [out, r])})."""
    rest = {name: tensor for name, tensor in tensors.items() if not name.startswith("delta.")}
    layers = {
        name[len("delta.") : -len(".down")]
        for name in tensors
        if name.startswith("delta.") and name.endswith(".down")
    }
    return rest, {
        layer: (tensors[f"delta.{layer}.down"], tensors[f"delta.{layer}.up"]) for layer in sorted(layers)
    }
