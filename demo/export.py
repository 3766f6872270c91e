"""Converts a training checkpoint to the adapter file that goes into the repository."""

from pathlib import Path

from demo.adapter import save_weights
from demo.model import vision_config


def export(checkpoint: Path, folder: Path) -> Path:
    """Write tower, projector and delta of ``checkpoint`` (from :func:`demo.train.train`) as float16 into
    ``folder``. Raises ``ValueError`` for any other file.
    """
    import torch

    try:
        state = torch.load(checkpoint, weights_only=True, map_location="cpu")["model"]
        eyes = state["eyes"]
    except OSError:
        raise
    except Exception as error:  # torch has many for files that it did not write
        raise ValueError(f"{checkpoint} is not a checkpoint of 'demo train'") from error
    tensors = {name: tensor for name, tensor in eyes.items() if not name.endswith("position_ids")}
    tensors |= {f"delta.{name}": tensor for name, tensor in state.get("delta", {}).items()}
    return save_weights(folder, tensors, vision_config().to_diff_dict())
