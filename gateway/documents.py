"""The protocol described for programs: AsyncAPI 3.0 of the websocket, OpenAPI 3.1 of plain HTTP.

Invariant: nothing here is written twice. Every message, field, bound and word comes from the types
that encode and decode (their docstrings, and the comments beside their fields) and from the table
of reads, so a document cannot differ from what is served. `gateway.http` serves both, and
`compex documents` prints them.

A schema is JSON Schema: of draft 2020-12 in OpenAPI 3.1, of draft 7 in AsyncAPI 3.0.
"""

import ast
import inspect
import itertools
import re
import sys
from collections.abc import Iterable
from functools import cache
from types import ModuleType
from typing import Any, Final, NamedTuple, cast, get_args

import msgspec
from compex_client import messages as m
from compex_client import reads as r
from compex_client.wallet import DOMAIN_NAME, DOMAIN_VERSION, FORMS

from engine.rejects import WORDS, Reject
from gateway import wire
from gateway.reads import MARKET, READS, Read

Json = dict[str, Any]
TITLE: Final = "compex"
LICENSE: Final = {"name": "Apache-2.0", "identifier": "Apache-2.0"}
SCHEMAS: Final = "#/components/schemas/{name}"
REQUESTS: Final[tuple[type[m.Request], ...]] = get_args(m.ClientMessage)
TOLD: Final[tuple[type[m.Reply], ...]] = get_args(m.ServerMessage)
# What a request is answered with if it is not refused: an ack, but for these.
ANSWERS: Final[dict[type[m.Request], type[m.Reply]]] = {
    m.Ping: m.Pong,
    m.Batch: m.BatchAck,
    m.Replace: m.ReplaceAck,
}
REPLIES: Final = frozenset({m.Ack, m.Reject, *ANSWERS.values()})


class Place(NamedTuple):
    """A path that is no read: `body` is the type of its JSON, if it has one."""

    path: str
    words: str
    kind: str
    body: Any = None
    statuses: tuple[int, ...] = (200,)
    is_deprecated: bool = False
    is_free: bool = False  # whoever asks, and however often


def _opening(module: ModuleType) -> str:
    """What a module says of itself to those who do not change it."""
    paragraphs = inspect.cleandoc(module.__doc__ or "").split("\n\n")
    return "\n\n".join(x for x in paragraphs if not x.startswith("Invariant:"))


def tag_of(message: type[msgspec.Struct]) -> str:
    """`t` of a message's frames."""
    return str(message.__struct_config__.tag)


def replies_to(request: type[m.Request]) -> tuple[type[m.Reply], type[m.Reply]]:
    """One of these, with the request's `id`, is its reply."""
    return ANSWERS.get(request, m.Ack), m.Reject


# --- schemas ------------------------------------------------------------------------------------
def schemas(types: Iterable[Any]) -> tuple[list[Json], Json]:
    """(the schema of each type, those they refer to by name), with every field's comment."""
    found, named = msgspec.json.schema_components(tuple(types), ref_template=SCHEMAS)
    for one in named.values():
        if "description" in one:
            one["description"] = inspect.cleandoc(one["description"])
    for struct in _structs(types):
        properties = named[struct.__name__]["properties"]
        for name, words in _comments(struct).items():
            properties[name]["description"] = words
    return list(found), named


def _structs(types: Iterable[Any]) -> set[type[msgspec.Struct]]:
    """The structs among these types, and those that they are made of."""
    found: set[type[msgspec.Struct]] = set()
    waiting = list(types)
    while waiting:
        one = waiting.pop()
        if isinstance(one, type) and issubclass(one, msgspec.Struct):
            if one not in found:
                found.add(one)
                waiting += [field.type for field in msgspec.structs.fields(one)]
        else:
            waiting += get_args(one)
    return found


def _comments(struct: type[msgspec.Struct]) -> dict[str, str]:
    """{encoded name: what the comment beside the field says}, those of its bases too."""
    written: dict[str, str] = {}
    for base in reversed(struct.__mro__):
        if issubclass(base, msgspec.Struct) and base is not msgspec.Struct:
            written |= _written_in(base)
    names = {field.name: field.encode_name for field in msgspec.structs.fields(struct)}
    return {names[name]: words for name, words in written.items()}


def _written_in(struct: type[msgspec.Struct]) -> dict[str, str]:
    classes, lines = _source(struct.__module__)
    found: dict[str, str] = {}
    for entry in classes[struct.__name__].body:
        if isinstance(entry, ast.AnnAssign) and isinstance(entry.target, ast.Name):
            above = itertools.takewhile(_is_comment, reversed(lines[: entry.lineno - 1]))
            beside = lines[(entry.end_lineno or entry.lineno) - 1][entry.end_col_offset or 0 :]
            words = " ".join(x.strip().lstrip("# ") for x in (*reversed([*above]), beside)).strip()
            if words:
                found[entry.target.id] = words
    return found


@cache
def _source(module: str) -> tuple[dict[str, ast.ClassDef], list[str]]:
    """The classes of a module as they are written, and its lines."""
    text = inspect.getsource(sys.modules[module])
    classes = {x.name: x for x in ast.parse(text).body if isinstance(x, ast.ClassDef)}
    return classes, text.splitlines()


def _is_comment(line: str) -> bool:
    return line.strip().startswith("#")


def in_draft_7(schema: Any) -> Any:
    """What 2020-12 says by `prefixItems`, in the words of draft 7; and a discriminator by its name
    alone, as AsyncAPI has it."""
    if isinstance(schema, list):
        return [in_draft_7(x) for x in cast("list[Any]", schema)]
    if not isinstance(schema, dict):
        return schema
    told = {name: in_draft_7(value) for name, value in cast("Json", schema).items()}
    if "prefixItems" in told:
        told["additionalItems"] = told.pop("items", True)
        told["items"] = told.pop("prefixItems")
    if isinstance(told.get("discriminator"), dict):
        told["discriminator"] = told["discriminator"]["propertyName"]
    return told


# --- AsyncAPI -----------------------------------------------------------------------------------
def asyncapi(build: str) -> Json:
    """The websocket, from the exchange's side: it receives requests and sends the rest."""
    _, named = schemas((*REQUESTS, *TOLD))
    return {
        "asyncapi": "3.0.0",
        "info": {
            "title": TITLE,
            "version": build,
            "license": {"name": LICENSE["name"]},
            "description": _opening(m),
            "x-protocol-version": m.PROTOCOL_VERSION,
            "x-rejects": [{"code": x.value, "reason": x.name, "message": WORDS[x]} for x in Reject],
            "x-eip712": _signed(),
            "x-close-codes": {code.name: code.value for code in m.CloseCode},
        },
        "defaultContentType": "application/json",
        "servers": {
            "node": {
                "host": "{host}",
                "protocol": "ws",
                "variables": {"host": {"default": "127.0.0.1:8765"}},
            }
        },
        "channels": {
            "websocket": {
                "address": "/ws",
                "description": "One message in each frame. The subprotocols "
                + " and ".join(f"`{x.subprotocol}`" for x in (wire.JSON, wire.MSGPACK))
                + " spell the same messages; without one it is the first.",
                "messages": {
                    tag_of(x): {"$ref": f"#/components/messages/{tag_of(x)}"}
                    for x in (*REQUESTS, *TOLD)
                },
                "bindings": {"ws": {"method": "GET"}},
            }
        },
        "operations": {tag_of(x): _request(x) for x in REQUESTS}
        | {f"tell_{tag_of(x)}": _told(x) for x in TOLD if x not in REPLIES},
        "components": {
            "messages": {tag_of(x): _message(x) for x in (*REQUESTS, *TOLD)},
            "schemas": in_draft_7(named),
        },
    }


def _signed() -> Json:
    """What wallets sign, as their `eth_signTypedData` takes it; the rest of the domain, chain id
    and vault, is in `hello`."""
    return {
        "domain": {"name": DOMAIN_NAME, "version": DOMAIN_VERSION},
        "types": {
            form.partition("(")[0]: [
                {"name": name, "type": kind}
                for kind, name in re.findall(r"(\w+(?:\[\])?) (\w+)", form)
            ]
            for form in FORMS
        },
    }


def _message(message: type[msgspec.Struct]) -> Json:
    words = inspect.cleandoc(message.__doc__ or message.__name__)
    found: Json = {
        "name": tag_of(message),
        "title": message.__name__,
        "summary": " ".join(words.split("\n\n")[0].split()),
        "payload": {"$ref": SCHEMAS.format(name=message.__name__)},
    }
    if "id" in message.__struct_fields__:
        found["correlationId"] = {
            "location": "$message.payload#/id",
            "description": "chosen by the client; the reply has the same",
        }
    return found


def _refer(message: type[msgspec.Struct]) -> Json:
    return {"$ref": f"#/channels/websocket/messages/{tag_of(message)}"}


def _request(request: type[m.Request]) -> Json:
    channel = {"$ref": "#/channels/websocket"}
    return {
        "action": "receive",
        "channel": channel,
        "messages": [_refer(request)],
        "reply": {"channel": channel, "messages": [_refer(x) for x in replies_to(request)]},
    }


def _told(message: type[m.Reply]) -> Json:
    return {
        "action": "send",
        "channel": {"$ref": "#/channels/websocket"},
        "messages": [_refer(message)],
    }


# --- OpenAPI ------------------------------------------------------------------------------------
def openapi(build: str, places: Iterable[Place]) -> Json:
    """Plain HTTP: the reads, and the other `places`."""
    places = tuple(places)
    bodies = [x.body for x in places if x.body is not None]
    answers = [x.answer for x in READS]
    queries = [x.query for x in READS]
    found, named = schemas((*bodies, *answers, m.Reject, *queries))
    body_of = dict(zip([x.path for x in places if x.body is not None], found, strict=False))
    parameters = {query.__name__: named.pop(query.__name__, {}) for query in queries}
    return {
        "openapi": "3.1.0",
        "info": {
            "title": TITLE,
            "version": build,
            "license": LICENSE,
            "description": _opening(r),
        },
        "servers": [{"url": "/"}],
        "paths": {x.path: {"get": _place(x, body_of.get(x.path))} for x in places}
        | {x.path: {"get": _read(x, parameters[x.query.__name__])} for x in READS},
        "components": {
            "schemas": named,
            "securitySchemes": {
                "bearer": {
                    "type": "http",
                    "scheme": "bearer",
                    "description": inspect.cleandoc(m.Token.__doc__ or ""),
                }
            },
        },
    }


def _place(place: Place, body: Json | None) -> Json:
    content = {place.kind: {"schema": body or {"type": "string"}}}
    found: Json = {
        "operationId": place.path.strip("/").replace(".", "_") or "page",
        "summary": place.words,
        "responses": {
            str(status): {"description": place.words, "content": content}
            for status in place.statuses
        },
    }
    if not place.is_free:
        found["responses"]["default"] = _refused()
    if place.is_deprecated:
        found["deprecated"] = True
    return found


def _refused() -> Json:
    schema = {"$ref": SCHEMAS.format(name=m.Reject.__name__)}
    content = {"application/json": {"schema": schema}}
    return {"description": "Refused, with its number.", "content": content}


def _read(read: Read, query: Json) -> Json:
    words = inspect.cleandoc(read.make.__doc__ or "")
    of_market = read.path.endswith(MARKET)
    parameters: list[Json] = [
        {"name": name, "in": "query", "schema": schema}
        for name, schema in query.get("properties", {}).items()
    ]
    if of_market:
        described = "a ticker, or a symbol with its | written as %7C"
        schema = {"type": "string", "maxLength": m.TEXT_CHARS_MAX}
        parameters.append(
            {
                "name": "market",
                "in": "path",
                "required": True,
                "description": described,
                "schema": schema,
            }
        )
    responses: Json = {
        "200": {
            "description": " ".join(words.split()),
            "content": {
                "application/json": {"schema": {"$ref": SCHEMAS.format(name=read.answer.__name__)}}
            },
        },
        "default": _refused(),
    }
    if read.is_cached and not read.is_private:
        responses["200"]["headers"] = {"ETag": {"schema": {"type": "string"}}}
        responses["304"] = {"description": "As the ETag in If-None-Match has it."}
    found: Json = {
        "operationId": read.make.__name__,
        "summary": words.split("\n")[0],
        "description": inspect.cleandoc(read.query.__doc__ or ""),
        "parameters": parameters,
        "responses": responses,
    }
    if read.is_private:
        found["security"] = [{"bearer": []}]
    return found
