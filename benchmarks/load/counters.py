"""Reads acceptance from a server's Prometheus counters (vLLM's names) if its answers do not report it."""

from __future__ import annotations

import aiohttp
from prometheus_client.parser import text_string_to_metric_families

_NAMES = {
    "spec_decode_num_drafts_total": "num_spec_steps",
    "spec_decode_num_draft_tokens_total": "num_draft_tokens",
    "spec_decode_num_accepted_tokens_total": "num_accepted_draft_tokens",
}


def read_counters(text: str) -> dict[str, int]:
    """Return the counters by the names in our answers' reports, with any prefix; empty if there are none."""
    found: dict[str, int] = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            name = _NAMES.get(sample.name.rpartition(":")[2])
            if name is not None:
                found[name] = found.get(name, 0) + int(sample.value)
    return found if len(found) == len(_NAMES) else {}


async def counters(http: aiohttp.ClientSession, url: str) -> dict[str, int]:
    """Fetch the counters of the server whose API is at ``url``; empty if it has or reports none."""
    try:
        async with http.get(url.removesuffix("/v1") + "/metrics", allow_redirects=False) as response:
            return read_counters(await response.text()) if response.status == 200 else {}
    except (aiohttp.ClientError, TimeoutError, ValueError):
        return {}


def grown(before: dict[str, int], after: dict[str, int]) -> dict[str, int]:
    return {name: after[name] - before[name] for name in before if name in after}
