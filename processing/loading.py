"""Loads Hugging Face processors without the parts that pictures do not need.

transformers' video processors need torchvision; without it, the whole processor of any family that also
takes videos fails to load. Only pictures are served here, and Pillow is enough for them.
"""

from __future__ import annotations

from typing import Any


def load_processor(model: str, config: Any, **where: Any) -> Any:
    """Return what ``AutoProcessor`` does for ``model`` with this ``config``. If torchvision is missing, the
    result is of the same class, or of one that treats pictures the same, but without a video processor.
    ``where``: arguments of ``from_pretrained`` such as the revision.
    """
    from transformers import AutoProcessor, Idefics3Processor
    from transformers.models.auto.processing_auto import PROCESSOR_MAPPING
    from transformers.utils import is_torchvision_available

    kind = PROCESSOR_MAPPING.get(type(config), None)
    name = "" if kind is None or is_torchvision_available() else kind.__name__
    if name == "PixtralProcessor":
        from processing.pixtral import pillow_pixtral_processor

        return pillow_pixtral_processor().from_pretrained(model, **where)
    if name == "SmolVLMProcessor":
        # It needs another package for videos, even without them. It treats pictures like its predecessor.
        kind = Idefics3Processor
    elif not name or "video_processor" not in kind.get_attributes():
        return AutoProcessor.from_pretrained(model, **where)
    return without_videos(kind).from_pretrained(model, **where)


def without_videos(kind: type[Any]) -> type[Any]:
    """Return a subclass of ``kind`` without the video processor, for which its constructor takes ``None``."""
    parts = [name for name in kind.get_attributes() if name != "video_processor"]
    return type(kind.__name__, (kind,), {"get_attributes": staticmethod(lambda: parts)})
