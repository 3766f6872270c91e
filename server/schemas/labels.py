"""Labels that clients attach to a request for themselves or for OpenAI's own models. They do not affect the
answer, but responses echo some of them, in several events each.
"""

from __future__ import annotations

from typing import Annotated, Final

from pydantic import BeforeValidator, Field

from server.schemas.base import few_fields

MAX_LABEL_LEN: Final = 512
"""OpenAI's limit for metadata values. Its limit for users and keys is 64, which proxies' names may exceed."""

MAX_PAIRS: Final = 16
MAX_KEY_LEN: Final = 64

Label = Annotated[str, Field(max_length=MAX_LABEL_LEN)]
LabelKey = Annotated[str, Field(max_length=MAX_KEY_LEN)]
Metadata = Annotated[dict[LabelKey, Label], Field(max_length=MAX_PAIRS), BeforeValidator(few_fields)]
