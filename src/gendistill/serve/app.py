"""The routes, as an ASGI application: what comes in is checked, what goes out is JSON or a stream of events."""

import asyncio
import json
import secrets
import time
from collections.abc import AsyncIterator, Awaitable, Callable

from starlette.applications import Starlette
from starlette.background import BackgroundTask
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, PlainTextResponse, Response, StreamingResponse
from starlette.routing import Route

from gendistill.serve import formats
from gendistill.serve.call import Call
from gendistill.serve.errors import ApiError
from gendistill.serve.formats import ChatFormat, CompletionFormat, Format, usage_of
from gendistill.serve.protocol import parse
from gendistill.serve.service import Service

CLIENT_GONE = 499  # the status by which nginx counts them; nobody receives it

Endpoint = Callable[[Request], Awaitable[Response]]


def make_app(service: Service) -> Starlette:
    """The application of a service, whose engine has been started."""
    created = int(time.time())
    card = {"id": service.name, "object": "model", "created": created, "owned_by": "gendistill"}
    card |= {"max_model_len": service.context}  # not OpenAI's; other servers of open models say it so

    async def models(request: Request) -> Response:
        return JSONResponse({"object": "list", "data": [card]})

    async def model(request: Request) -> Response:
        if (name := request.path_params["name"]) != service.name:
            raise ApiError(404, f"there is no model '{name}' here", "model_not_found", "model")
        return JSONResponse(card)

    async def health(request: Request) -> Response:
        if service.engine.is_draining or not service.engine.thread.is_alive():
            return JSONResponse({"status": "shutting down"}, 503)
        return JSONResponse({"status": "ok"})

    async def metrics(request: Request) -> Response:
        engine = service.engine
        text = service.metrics.text(len(engine.running), len(engine.waiting))
        return PlainTextResponse(text, media_type="text/plain; version=0.0.4")

    def answering(form: Format) -> Endpoint:
        return lambda request: answer(service, request, form)

    routes = {
        ("POST", "/v1/chat/completions"): answering(ChatFormat()),
        ("POST", "/v1/completions"): answering(CompletionFormat()),
        ("GET", "/v1/models"): models,
        ("GET", "/v1/models/{name:path}"): model,
        ("GET", "/metrics"): metrics,
    }
    guarded = [Route(path, _counted(service, path, end), methods=[method]) for (method, path), end in routes.items()]
    # Of what no endpoint answers: other paths and methods, and bugs.
    handlers = {ApiError: _error_response, HTTPException: _http_error, Exception: _failure}
    # Health is open: whoever looks after the process has no key, and learns nothing by it.
    return Starlette(routes=[*guarded, Route("/health", health)], exception_handlers=handlers)


def _counted(service: Service, path: str, endpoint: Endpoint) -> Endpoint:
    """An endpoint for those who know the key, whose responses are counted by status."""

    async def counted(request: Request) -> Response:
        try:
            _check_key(service, request)  # before a byte of the body is read
            response = await endpoint(request)
        except ApiError as error:
            response = _to_response(error)
        except ClientDisconnect:
            response = Response(status_code=CLIENT_GONE)
        # By the route's own path: paths that clients invent would fill memory.
        service.metrics.responses[path, response.status_code] += 1
        return response

    return counted


def _check_key(service: Service, request: Request) -> None:
    if service.key is None:
        return
    scheme, _, given = request.headers.get("authorization", "").partition(" ")
    # In a time that tells nothing of the key. As the bytes that were sent, which Starlette reads as Latin-1.
    is_right = secrets.compare_digest(given.strip().encode("latin-1"), service.key.encode())
    if scheme.lower() != "bearer" or not is_right:
        message = "wrong or missing API key; send it as 'Authorization: Bearer KEY'"
        raise ApiError(401, message, "invalid_api_key", headers={"WWW-Authenticate": "Bearer"})


async def answer(service: Service, request: Request, form: Format) -> Response:
    """Answers a body, whole or as a stream.

    Raises:
        ApiError: it is not to be answered, or the server failed.
        ClientDisconnect: nobody waits for the answer any more.
    """
    body = parse(form.body, await _read(request, service.most_bytes))
    call = await service.call(body)
    response = formats.Response(form, service.name, service.tokenizer, body, len(call.requests))
    if body.stream:
        events = _events(call, response, body.stream_options.include_usage)
        # The task too: a client that goes away while a chunk is sent leaves the generator where it is.
        gone = BackgroundTask(_leave, service, call)
        headers = {"Cache-Control": "no-cache", "X-Accel-Buffering": "no"}  # proxies are to pass on each event
        return StreamingResponse(events, media_type="text/event-stream", headers=headers, background=gone)
    return await _whole(service, request, call, response)


async def _read(request: Request, most: int) -> bytes:
    """The body, of which no more is kept than may be."""
    parts, size = [], 0
    async for part in request.stream():
        size += len(part)
        if size > most:
            raise ApiError(413, f"the body has more than {most:,} bytes, which no prompt that fits needs", "too_large")
        parts.append(part)
    return b"".join(parts)


async def _whole(service: Service, request: Request, call: Call, response: formats.Response) -> Response:
    async def collect() -> None:
        async for delta in call.deltas():
            response.add(delta)

    # A server does not notice by itself that the client of a whole response has gone.
    answered, gone = asyncio.create_task(collect()), asyncio.create_task(_disconnected(request))
    try:
        await asyncio.wait([answered, gone], return_when=asyncio.FIRST_COMPLETED)
        if not answered.done():
            raise ClientDisconnect
        answered.result()  # raises what it met
    finally:
        answered.cancel()
        gone.cancel()
        await _leave(service, call)
    return JSONResponse(response.whole(usage_of(call.prompt_tokens, call.completion_tokens)))


async def _disconnected(request: Request) -> None:
    # The body has been read, so that nothing else can come.
    while (await request.receive())["type"] != "http.disconnect":
        pass


async def _leave(service: Service, call: Call) -> None:
    """Gives away what rows a call still has: its client is gone, or it was answered."""
    if not call.is_over:
        service.metrics.cancelled += 1
    call.cancel()


async def _events(call: Call, response: formats.Response, with_usage: bool) -> AsyncIterator[str]:
    try:
        async for delta in call.deltas():
            # Nothing to say yet: half a character, or what may be the beginning of a stop string.
            if delta.text or delta.tokens or delta.finish is not None:
                yield _event(response.chunk(delta))
        if with_usage:
            yield _event(response.usage_chunk(usage_of(call.prompt_tokens, call.completion_tokens)))
    except ApiError as error:  # the status was sent long ago
        yield _event(error.to_dict())
        return
    yield "data: [DONE]\n\n"


def _event(content: dict) -> str:
    # One line of ASCII: an event ends at an empty line, and some clients take U+2028 for the end of one.
    return f"data: {json.dumps(content)}\n\n"


def _to_response(error: ApiError) -> Response:
    return JSONResponse(error.to_dict(), error.status, error.headers)


async def _error_response(request: Request, error: ApiError) -> Response:
    return _to_response(error)


async def _http_error(request: Request, error: HTTPException) -> Response:
    """Of the router: no such path, or another method."""
    message = f"{request.method} {request.url.path}: {error.detail.lower()}"
    return _to_response(ApiError(error.status_code, message, "unknown_url", None, error.headers))


async def _failure(request: Request, error: Exception) -> Response:
    """A bug: it is logged, and the server continues."""
    return _to_response(ApiError(500, f"the server failed ({type(error).__name__})", "server_error"))
