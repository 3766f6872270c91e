"""Pixtral's processor, because that of transformers cannot be imported without torchvision."""

from __future__ import annotations

from typing import Any


def pillow_pixtral_processor() -> type[Any]:
    """Return a processor class that treats pictures like ``PixtralProcessor``."""
    from transformers import ProcessorMixin

    return type("PillowPixtralProcessor", (_PixtralPictures, ProcessorMixin), {})


class _PixtralPictures:
    """The part of a processor that is specific to Pixtral. A picture becomes rows of ``image_token``, one for
    each ``spatial_merge_size`` by ``spatial_merge_size`` patches, with ``image_break_token`` between the rows
    and ``image_end_token`` after the last.
    """

    def __init__(
        self,
        image_processor: Any = None,
        tokenizer: Any = None,
        patch_size: int = 16,
        spatial_merge_size: int = 1,
        chat_template: str | None = None,
        image_token: str = "[IMG]",  # noqa: S107
        image_break_token: str = "[IMG_BREAK]",  # noqa: S107
        image_end_token: str = "[IMG_END]",  # noqa: S107
    ) -> None:
        super().__init__(image_processor, tokenizer, chat_template=chat_template)  # type: ignore[call-arg]
        self.patch_size, self.spatial_merge_size = patch_size, spatial_merge_size
        self.image_token, self.image_token_id = image_token, tokenizer.convert_tokens_to_ids(image_token)
        self.image_break_token, self.image_end_token = image_break_token, image_end_token

    def _process_images(self, images: Any, **options: Any) -> Any:
        options["patch_size"] = self.patch_size * self.spatial_merge_size
        return super()._process_images(images, **options)  # type: ignore[misc]

    def replace_image_token(self, image_inputs: Any, image_idx: int, **_: Any) -> str:
        edge = self.patch_size * self.spatial_merge_size
        height, width = (int(length) // edge for length in image_inputs["image_sizes"][image_idx])
        row = self.image_token * width
        return self.image_break_token.join([row] * height) + self.image_end_token
