"""Texts into vectors, by any model server that answers with all of them at once. What differs is the path and the reading."""

from __future__ import annotations

from collections.abc import Callable

import anyio

from daemon.backends import http
from daemon.backends.http import UNREADABLE, StatusError
from daemon.backends.upstream import Upstream
from protocol.errors import ModelError, Stalled

Vectors = list[list[float]]


async def vectors_of(
    upstream: Upstream, path: str, model: str, texts: list[str], read: Callable[[bytes], tuple[Vectors, str]]
) -> tuple[Vectors, str]:
    """One vector for each text, and the model that made them; `read` takes the body apart.

    Raises what the answer's status stands for, Stalled, or ModelError for an answer that is no vectors.
    """
    url = upstream.server.url
    try:
        with anyio.fail_after(upstream.limits.first_byte):
            body = await upstream.fetch("POST", path, {"model": model, "input": texts})
        vectors, made_by = read(body)
    except StatusError as error:
        raise http.refused(error.refusal, upstream.server, model) from None
    except TimeoutError:
        raise Stalled(f"{url} made no vectors in time: ask with fewer texts, or raise limits.first_byte") from None
    except UNREADABLE as error:
        raise ModelError(f"{url} answered something else than vectors ({error}): see its log") from None
    if len(vectors) != len(texts):
        raise ModelError(f"{url} made {len(vectors)} vectors of {len(texts)} texts: see its log")
    return vectors, made_by or model
