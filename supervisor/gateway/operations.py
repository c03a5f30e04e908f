"""Every route of the gateway, in the order in which they are described."""

from __future__ import annotations

from protocol.messages import ChatResponse
from supervisor.gateway import chat, entry, resume
from supervisor.gateway.operation import Operation
from supervisor.gateway.resume import ResumeQuery

OPERATIONS = (
    Operation(
        method="POST",
        path="/api/chat/{id}",
        run=chat.ask,
        tag="chat",
        summary="Ask one specialist, and have the whole answer",
        body=chat.ChatBody,
        answer=ChatResponse,
        failures=(404, 502, 503, 504),
    ),
    Operation(
        method="POST",
        path="/api/chat/{id}/stream",
        run=chat.ask_live,
        tag="chat",
        summary="Ask one specialist, and have the answer as it comes",
        body=chat.ChatBody,
        answers="events",
        failures=(404, 502, 503, 504),
    ),
    Operation(
        method="GET",
        path="/api/chat/{id}/stream",
        run=chat.ask_by_query,
        tag="chat",
        summary="The same for EventSource; with a Last-Event-ID it goes on",
        query=chat.ChatQuery,
        answers="events",
        failures=(404, 502, 503, 504),
    ),
    Operation(
        method="GET",
        path="/api/stream/events/{id}",
        run=resume.events,
        tag="streams",
        summary="Follow a stream from its first event, or from Last-Event-ID",
        query=ResumeQuery,
        answers="events",
        failures=(404,),
    ),
    Operation(
        method="GET",
        path="/api/stream/status/{id}",
        run=resume.status,
        tag="streams",
        summary="How a stream is",
        answer=resume.StreamStatus,
        failures=(404,),
    ),
    Operation(
        method="DELETE",
        path="/api/stream/{id}",
        run=resume.cancel,
        tag="streams",
        summary="End the work behind a stream",
        answer=resume.Cancelled,
        failures=(404,),
    ),
    Operation(
        method="GET",
        path="/api/session",
        run=entry.who,
        tag="entry",
        summary="Who asks, and whether a key is needed first",
        answer=entry.Entry,
        scope="open",
    ),
    Operation(
        method="POST",
        path="/api/session",
        run=entry.enter,
        tag="entry",
        summary="A cookie for a browser that was given a key",
        body=entry.EntryBody,
        answer=entry.Entry,
        failures=(401,),
        scope="open",
    ),
    Operation(
        method="DELETE",
        path="/api/session",
        run=entry.leave,
        tag="entry",
        summary="The browser forgets its cookie",
        answer=entry.Entry,
        scope="open",
    ),
)
