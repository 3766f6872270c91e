"""Chats and pictures to token ids and pixel tensors, and ids back to text, for one model.

Knows the processor and tokenizer of a Hugging Face folder; no weights, no engine, no HTTP. Instances are
thread-safe: nothing changes after loading. transformers is imported on loading, since that is slow.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from hashlib import blake2b
from pathlib import Path
from typing import Any

from PIL import Image

from processing.chat import ChatMessage, images_of
from processing.control import ControlTokenizer, Section, split_sections
from processing.detokenizer import Detokenizer
from processing.errors import PromptError, UnsupportedModelError
from processing.loading import load_processor
from processing.pictures import (
    TILE_COUNTS,
    check_shape,
    options_alone,
    picture_hash,
    split_features,
    split_runs,
    to_rgb,
)
from processing.prompt import ImageInput, Prompt
from processing.template import ChatTemplate
from processing.tools.support import ToolSupport
from processing.vocabulary import Vocabulary


class Processor:
    """Use ``Processor.from_pretrained``; the constructor takes what transformers has loaded."""

    def __init__(
        self, loaded: Any, config: Any, chat_template: str | None, tool_parser: str = "auto"
    ) -> None:
        self._vlm = loaded if hasattr(loaded, "image_processor") else None
        tokenizer = loaded if self._vlm is None else loaded.tokenizer
        self._bos_token: str | None = tokenizer.bos_token
        backend = getattr(tokenizer, "backend_tokenizer", None)
        if backend is None:
            raise UnsupportedModelError("this model has no tokenizer.json, which is required")
        backend.no_truncation()
        backend.no_padding()
        self._backend = backend
        source = _template_source(loaded, tokenizer, chat_template)
        self._image_token: str = "" if self._vlm is None else self._vlm.image_token
        picture_tokens = [] if self._vlm is None else self._vlm.all_special_multimodal_tokens
        # Without a template there are still special tokens to keep out of plain text.
        template = ChatTemplate(tokenizer, source or "", picture_tokens)
        self._template = template if source else None
        self._control = ControlTokenizer(backend, template.tokens)
        self.vocabulary = Vocabulary(backend)
        self.tools = ToolSupport(
            source or "",
            takes_tools="tools" in template.variables,
            special_id=self._special_id,
            parser=tool_parser,
        )
        self.image_token_id = _image_token_id(self._vlm, config)
        if self._vlm is not None:
            merged = self._vlm._merge_kwargs(tokenizer_init_kwargs=tokenizer.init_kwargs)
            self._image_options = options_alone(self._vlm.image_processor, merged["images_kwargs"])
            self._fingerprint = _fingerprint(self._vlm.image_processor, self._image_options)

    @classmethod
    def from_pretrained(
        cls,
        model: str,
        revision: str | None = None,
        trust_remote_code: bool = False,
        chat_template: str | None = None,
        tool_parser: str = "auto",
    ) -> Processor:
        """Load the processor of a model. ``chat_template``: a file, or the template itself; by default, the
        model's own. ``tool_parser``: the ``parser`` of ``ToolSupport``.
        """
        from transformers import AutoConfig

        where: dict[str, Any] = {"revision": revision, "trust_remote_code": trust_remote_code}
        config = AutoConfig.from_pretrained(model, **where)
        return cls(load_processor(model, config, **where), config, _read_template(chat_template), tool_parser)

    @property
    def template_arguments(self) -> frozenset[str]:
        """Names that the chat template reads besides those passed to every template."""
        return self._template.arguments if self._template is not None else frozenset()

    @property
    def supports_images(self) -> bool:
        return self._vlm is not None

    @property
    def vocab_size(self) -> int:
        return len(self.vocabulary)

    def apply(
        self,
        messages: Sequence[ChatMessage],
        *,
        add_generation_prompt: bool = True,
        template_kwargs: dict[str, Any] | None = None,
    ) -> Prompt:
        """Return the same as ``apply_chat_template(tokenize=True)`` of transformers, except that special
        tokens written by users stay text. The names in ``template_kwargs`` (which include ``tools``) are
        trusted, their texts are not. Raises ``PromptError``."""
        if self._template is None:
            raise PromptError(
                "this model has no chat template; pass one with --chat-template, or use /v1/completions"
            )
        images = list(images_of(messages))
        text, ranges = self._template.render(
            messages, add_generation_prompt=add_generation_prompt, template_kwargs=template_kwargs or {}
        )
        sections = split_sections(text, self._template.tokens, ranges)
        placeholders = [i for i, s in enumerate(sections) if s.trusted and s.text == self._image_token]
        if (places := len(placeholders)) != len(images):
            raise PromptError(
                f"the messages have {len(images)} images, but the chat template has {places} places for them"
            )
        if not images:
            return Prompt(token_ids=self._encode(sections))
        tensors, replacements = self._process(images)
        for index, replacement in zip(placeholders, replacements, strict=True):
            sections[index] = Section(replacement, trusted=True)
        token_ids = self._encode(sections)
        return Prompt(token_ids=token_ids, images=self._images(token_ids, tensors, replacements))

    def encode(self, text: str, add_special_tokens: bool = True) -> list[int]:
        """Return the ids of a prompt whose author wrote all of it: special tokens in it are parsed."""
        return self._control.encode(text, add_special_tokens)

    def encode_plain(self, text: str, add_special_tokens: bool = False) -> list[int]:
        """Return the ids of a text in which special tokens are ordinary characters."""
        return self._control.encode_plain(text, add_special_tokens)

    def decode(self, token_ids: Iterable[int], *, skip_special_tokens: bool = True) -> str:
        detokenizer = self.detokenizer(skip_special_tokens=skip_special_tokens)
        return detokenizer.feed(token_ids) + detokenizer.finish()

    def detokenizer(
        self,
        *,
        skip_special_tokens: bool = True,
        at_text_start: bool = True,
        shown_ids: frozenset[int] = frozenset(),
    ) -> Detokenizer:
        """Return a detokenizer for a new stream. ``at_text_start``: false for text that continues a prompt.
        ``shown_ids``: special tokens that are not skipped.
        """
        return Detokenizer(
            self.vocabulary,
            skip_special_tokens=skip_special_tokens,
            at_text_start=at_text_start,
            shown_ids=shown_ids,
        )

    def token_bytes(self, token_id: int) -> bytes:
        """Return the exact bytes of a token, possibly part of a character."""
        return self.vocabulary.token_bytes(token_id)

    def token_text(self, token_id: int) -> str:
        return self.vocabulary.token_text(token_id)

    def _special_id(self, text: str) -> int | None:
        token_id = self._backend.token_to_id(text)
        return token_id if token_id in self.vocabulary.special_ids else None

    def _encode(self, sections: Sequence[Section]) -> list[int]:
        ids = self._control.encode_sections(sections)
        # transformers: tokenizers add nothing to a rendered chat, processors do unless it begins with BOS.
        begins_with_bos = bool(sections) and sections[0].trusted and sections[0].text == self._bos_token
        if self._vlm is None or begins_with_bos:
            return ids
        return [*self._control.before, *ids, *self._control.after]

    def _process(self, images: Sequence[Image.Image]) -> tuple[list[Any], list[str]]:
        """Return the tensors of each picture, and the text that replaces its placeholder."""
        assert self._vlm is not None
        for image in images:
            check_shape(image.size)
        # All at once: in some families tiling depends on the number of pictures. Nested as one message.
        batch = [[to_rgb(image) for image in images]]
        try:
            features, replacements = self._vlm._process_images(batch, **self._image_options)
        except ValueError as error:
            sizes = ", ".join(f"{image.width} x {image.height}" for image in images)
            raise PromptError(f"the model's image processor refuses pictures of {sizes} pixels") from error
        unused = set(self._vlm.unused_input_names) - TILE_COUNTS
        kept = {name: value for name, value in features.items() if name not in unused}
        return split_features(kept, len(images)), replacements

    def _images(self, token_ids: list[int], tensors: list[Any], replacements: list[str]) -> list[ImageInput]:
        wanted = self.image_token_id
        counts = [sum(i == wanted for i in self.encode(text, False)) for text in replacements]
        positions = [i for i, token_id in enumerate(token_ids) if token_id == wanted]
        if len(positions) != sum(counts) or not all(counts):
            raise PromptError(
                f"the images need {counts} placeholder tokens, but the prompt has {len(positions)}"
            )
        return [
            ImageInput(hash=picture_hash(own, self._fingerprint), spans=spans, tensors=own)
            for own, spans in zip(tensors, split_runs(positions, counts), strict=True)
        ]


def _template_source(loaded: Any, tokenizer: Any, given: str | None) -> str | None:
    if given is not None:
        return given
    for owner in (loaded, tokenizer):
        template = getattr(owner, "chat_template", None)
        if isinstance(template, dict):
            template = template.get("default")
        if template:
            return str(template)
    return None


def _read_template(given: str | None) -> str | None:
    if given is None or "{" in given or "\n" in given:
        return given
    try:
        return Path(given).read_text(encoding="utf-8")
    except OSError as error:
        raise ValueError(
            f"--chat-template {given!r} is neither a readable file nor a template ({error.strerror})"
        ) from error


def _image_token_id(vlm: Any, config: Any) -> int | None:
    """Return the id whose embeddings the model replaces. (Gemma 3's processor names another one.)"""
    if vlm is None:
        return None
    for owner, name in ((config, "image_token_id"), (config, "image_token_index"), (vlm, "image_token_id")):
        if isinstance(found := getattr(owner, name, None), int):
            return found
    raise UnsupportedModelError("neither the model's config nor its processor names an image token")


def _fingerprint(image_processor: Any, options: dict[str, Any]) -> bytes:
    """Return a value that changes whenever the same pixels could be processed differently."""
    described = [type(image_processor).__name__, image_processor.to_dict(), options]
    return blake2b(json.dumps(described, sort_keys=True, default=str).encode()).digest()
