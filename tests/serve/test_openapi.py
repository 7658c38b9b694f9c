"""The OpenAPI document, by schemathesis: whatever fits it gets an answer, and none is a failure of the server."""

import pytest
import schemathesis
from helpers.served import served, small_pipeline
from hypothesis import HealthCheck, given, settings

OPERATIONS = ("/v1/chat/completions", "/v1/images/generations", "/v1/images/edits", "/v1/audio/speech",
              "/v1/audio/transcriptions", "/v1/models/{name}", "/v1/models", "/health", "/metrics")  # fmt: skip


@pytest.fixture(scope="module")
def operations(tmp_path_factory):
    """Each operation of a served model's document, by its path."""
    with served(small_pipeline(tmp_path_factory.mktemp("model"), chat=True, steps=2)) as address:
        api = schemathesis.openapi.from_url(f"{address}/openapi.json")
        yield {found.ok().path: found.ok() for found in api.get_all_operations()}


@pytest.mark.parametrize("path", OPERATIONS)
def test_no_request_makes_the_server_fail(operations, path):
    assert set(operations) == set(OPERATIONS)
    seen = set()

    @given(case=operations[path].as_strategy())
    @settings(max_examples=25, deadline=None, suppress_health_check=list(HealthCheck), database=None)
    def ask(case):
        answer = case.call(timeout=60)
        seen.add(answer.status_code)
        assert answer.status_code < 500, answer.text
        if answer.status_code >= 400:
            assert answer.json()["error"]["message"]

    ask()
    assert seen & {200, 400, 404}
