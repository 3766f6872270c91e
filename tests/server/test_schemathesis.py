"""Requests that schemathesis makes from our own OpenAPI document, right ones and wrong ones."""

from __future__ import annotations

import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from schemathesis import GenerationMode
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_schema_conformance,
    status_code_conformance,
)

from tests.server.conftest import Live

CHECKS = [not_a_server_error, status_code_conformance, content_type_conformance, response_schema_conformance]
FEW, MANY = 3, 40
ADDRESSES = {
    ("get", "/health"): FEW,
    ("get", "/metrics"): FEW,
    ("get", "/ready"): FEW,
    ("get", "/v1/models"): FEW,
    ("get", "/v1/models/{model_id}"): FEW,
    ("get", "/version"): FEW,
    ("post", "/detokenize"): MANY,
    ("post", "/tokenize"): MANY,
    ("post", "/v1/chat/completions"): MANY,
    ("post", "/v1/completions"): MANY,
    ("post", "/v1/responses"): MANY,
}


@pytest.fixture
def document(live: Live) -> schemathesis.BaseSchema:
    return schemathesis.openapi.from_url(live.url + "/openapi.json")


def test_every_address_is_tried(document: schemathesis.BaseSchema) -> None:
    found = {(one.ok().method, one.ok().path) for one in document.get_all_operations()}
    assert found == set(ADDRESSES)


CASES = [
    (method, path, mode)
    for method, path in ADDRESSES
    for mode in GenerationMode
    if method == "post" or mode is GenerationMode.POSITIVE  # what is got has no body to be wrong
]


@pytest.mark.parametrize(("method", "path", "mode"), CASES)
def test_no_request_breaks_the_server(
    document: schemathesis.BaseSchema, method: str, path: str, mode: GenerationMode
) -> None:
    operation = document[path][method.upper()]

    @settings(
        max_examples=ADDRESSES[method, path],
        deadline=None,
        derandomize=True,
        database=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(case=operation.as_strategy(generation_mode=mode))
    def ask(case: schemathesis.Case) -> None:
        case.call_and_validate(checks=CHECKS)

    ask()
