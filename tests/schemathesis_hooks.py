"""What schemathesis is told of requests that a description has no words for."""

from __future__ import annotations

import itertools

import schemathesis
from schemathesis import Case, HookContext

_numbers = itertools.count()


@schemathesis.hook
def before_call(context: HookContext, case: Case, kwargs: object) -> None:
    """A retry key is for one request: a second one that has it and is not the same is refused, as it should be."""
    if case.headers and (key := case.headers.get("Idempotency-Key")):
        case.headers["Idempotency-Key"] = f"{key[:240]}{next(_numbers)}"
