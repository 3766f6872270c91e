"""Hugging Face processors of a model folder, without what pictures do not need.

transformers' video processors want torchvision, and without it refuse the whole processor of every family
that takes videos too. Only pictures are served here, and Pillow is enough for them.
"""

from __future__ import annotations

from typing import Any


def load_processor(model: str, config: Any, **where: Any) -> Any:
    """What ``AutoProcessor`` gives for ``model`` with this ``config``; where torchvision is missing, of the
    same class, or one that does the same with pictures, but without a video processor. ``where``: revision
    and the like, as ``from_pretrained`` has them.
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
        # It wants a package more for videos, even without them. Pictures it treats as its elder does.
        kind = Idefics3Processor
    elif not name or "video_processor" not in kind.get_attributes():
        return AutoProcessor.from_pretrained(model, **where)
    return without_videos(kind).from_pretrained(model, **where)


def without_videos(kind: type[Any]) -> type[Any]:
    """``kind`` of processor with one part less. Its constructor takes ``None`` for the video processor."""
    parts = [name for name in kind.get_attributes() if name != "video_processor"]
    return type(kind.__name__, (kind,), {"get_attributes": staticmethod(lambda: parts)})
