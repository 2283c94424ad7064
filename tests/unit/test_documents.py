"""The published documents: valid by their own standards, and true of what the gateway decodes."""

import inspect
import json
import random
import subprocess
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, cast

import fastjsonschema
import jsonschema
import msgspec
import pytest
from compex_client import messages as m
from msgspec import inspect as types
from openapi_spec_validator import validate as validate_openapi

from engine.rejects import Reject
from gateway import wire
from gateway.documents import REPLIES, REQUESTS, TOLD, asyncapi, tag_of
from gateway.health import Health
from gateway.http import HttpRequest, Routes, http_document
from gateway.session import BUILD
from tests import described
from tests.exchange import TICKER, running_exchange

SEED = 20_261_121
MUTATIONS = 300  # of each type
SPOILT: tuple[Any, ...] = (
    None, True, -1, 0, 1, m.ID_MAX, m.ID_MAX + 1, 1 << 64, "", "x", "x" * 129, "buy", [], {},
    [["1", "2"]], [["1"]], [["1", "2", "3"]], [1], 0.5,
)  # fmt: skip


def full(kind: types.Type, most: bool = False) -> Any:
    """A value of a type, with everything in it: the smallest, or the largest."""
    match kind:
        case types.StructType(fields=fields):
            tag = {kind.tag_field: kind.tag} if kind.tag_field else {}
            return tag | {field.encode_name: full(field.type, most) for field in fields}
        case types.IntType(ge=low, le=high):
            return (high if most else low) or 0
        case types.StrType(max_length=length):
            return "1" * (length or 3) if most else ""
        case types.BoolType():
            return most
        case types.LiteralType(values=values):
            return values[-1 if most else 0]
        case types.TupleType(item_types=items):
            return [full(item, most) for item in items]
        case types.ListType(item_type=item, min_length=low, max_length=high):
            return [full(item, most)] * ((high or 2) if most else (low or 0))
        case types.UnionType(types=kinds):
            return full(kinds[0], most)
        case types.DictType():
            return {}
        case _:
            raise AssertionError(f"no example of {kind}")


def accepts(tag: str, message: Any) -> bool:
    try:
        described.described.message(tag)(message)
    except fastjsonschema.JsonSchemaException:
        return False
    return True


def decodes(message: Any) -> bool:
    try:
        wire.JSON.decode(json.dumps(message))
    except wire.BadRequest:
        return False
    return True


def places_in(message: Any, at: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Where something stands in a message, however deep."""
    inside: Iterable[tuple[Any, Any]] = ()
    if isinstance(message, list):
        inside = enumerate(cast("list[Any]", message))
    elif isinstance(message, dict):
        inside = cast("dict[str, Any]", message).items()
    for name, value in inside:
        yield (*at, name)
        yield from places_in(value, (*at, name))


def spoilt(message: Any, dice: random.Random) -> Any:
    """A copy in which one thing, somewhere, is another, is gone, or is too much."""
    copy = json.loads(json.dumps(message))
    place = dice.choice(list(places_in(copy)))
    holder = copy
    for name in place[:-1]:
        holder = holder[name]
    match dice.randrange(4):
        case 0 if isinstance(holder, dict):
            del holder[place[-1]]
        case 1 if isinstance(holder, dict):
            holder["nosuch"] = 1
        case _:
            holder[place[-1]] = dice.choice(SPOILT)
    return copy


@pytest.mark.parametrize("request_type", REQUESTS, ids=tag_of)
def test_a_document_takes_for_a_request_what_the_gateway_takes_for_one(
    request_type: type[m.Request],
) -> None:
    tag, dice = tag_of(request_type), random.Random(SEED)
    whole = [full(types.type_info(request_type), most) | {"id": 1} for most in (False, True)]
    for message in whole:
        assert accepts(tag, message) and decodes(message), message
    outcomes: set[bool] = set()
    for _ in range(MUTATIONS):
        message = spoilt(dice.choice(whole), dice)
        if message.get("t") != tag:
            assert not accepts(tag, message), message
            continue
        assert accepts(tag, message) == decodes(message), message
        outcomes.add(decodes(message))
    assert outcomes == {True, False}, f"seed {SEED} spoils too little or too much"


@pytest.mark.parametrize("told", TOLD, ids=tag_of)
def test_a_document_describes_every_message_of_the_server(told: type[m.Reply]) -> None:
    tag = tag_of(told)
    for most in (False, True):
        message = full(types.type_info(told), most)
        encoded = msgspec.json.decode(msgspec.json.encode(msgspec.convert(message, told)))
        assert accepts(tag, message) and accepts(tag, encoded), message
        assert accepts(tag, message | {"new_one": 1}), "a client ignores what it does not know"
        for name in encoded:
            assert not accepts(tag, encoded | {name: object()}), f"{name} may be anything"


def test_the_http_document_is_valid_openapi() -> None:
    document = json.loads(json.dumps(http_document(BUILD)))
    validate_openapi(document)
    for schema in asyncapi(BUILD)["components"]["schemas"].values():
        jsonschema.Draft7Validator.check_schema(schema)
    for schema in document["components"]["schemas"].values():
        jsonschema.Draft202012Validator.check_schema(schema)


def test_every_reference_leads_somewhere() -> None:
    for document in (asyncapi(BUILD), http_document(BUILD)):
        for place in places_in(document):
            if place[-1] == "$ref":
                reference = document
                for name in place:
                    reference = reference[name]
                assert isinstance(reference, str)
                found: Any = document
                for name in reference.removeprefix("#/").split("/"):
                    found = found[name]


def test_every_message_is_described_in_words_of_its_own() -> None:
    said = [inspect.cleandoc(x.__dict__.get("__doc__") or "") for x in (*REQUESTS, *TOLD)]
    assert all(said), "a message without a docstring"
    assert len(set(said)) == len(said)
    named = asyncapi(BUILD)["components"]["schemas"]
    assert [named[x.__name__]["description"] for x in (*REQUESTS, *TOLD)] == said
    assert named["AccountSnapshot"]["properties"]["capacities"]["description"] == (
        "(market, declared total qty)"
    )


def test_every_request_is_an_operation_with_its_replies() -> None:
    document = asyncapi(BUILD)
    operations = document["operations"]
    asked = {name for name, x in operations.items() if x["action"] == "receive"}
    told = {name for name, x in operations.items() if x["action"] == "send"}
    assert asked == {tag_of(x) for x in REQUESTS}
    assert told == {f"tell_{tag_of(x)}" for x in TOLD if x not in REPLIES}
    assert [x["$ref"].split("/")[-1] for x in operations["ping"]["reply"]["messages"]] == [
        "pong", "reject",
    ]  # fmt: skip
    assert {x["code"] for x in document["info"]["x-rejects"]} == set(Reject)


async def test_every_path_that_is_described_is_there_and_no_other(tmp_path: Path) -> None:
    async with running_exchange(tmp_path) as exchange:
        await exchange.list_market()
        owner = exchange.converse(await exchange.open_account(1))
        [ack] = owner.say(m.Token(2))
        assert isinstance(ack, m.Ack)
        routes = Routes(exchange.desk, Health(exchange.port))
        bearer = {"authorization": f"Bearer {ack.token}"}
        for path, item in http_document(BUILD)["paths"].items():
            where = path.replace("{market}", TICKER)
            answer = routes.answer(HttpRequest("GET", where, "", bearer), "127.0.0.1")
            told = item["get"]["responses"]["200"]["content"]
            assert (answer.status, [answer.kind.split(";")[0]]) == (
                200, [kind.split(";")[0] for kind in told],
            ), path  # fmt: skip
        served = routes.answer(HttpRequest("GET", "/asyncapi.json", "", {}), "127.0.0.1")
        assert json.loads(served.body) == json.loads(json.dumps(asyncapi(BUILD)))


@pytest.mark.parametrize("which", ["asyncapi", "openapi"])
def test_the_command_prints_what_is_served(which: str) -> None:
    run = subprocess.run(
        [sys.executable, "-m", "gateway.cli", "documents", which],
        capture_output=True, text=True, timeout=120, check=True,
    )  # fmt: skip
    document = asyncapi(BUILD) if which == "asyncapi" else http_document(BUILD)
    assert json.loads(run.stdout) == json.loads(json.dumps(document))


async def test_what_contradicts_a_document_is_noticed_where_it_goes_over_the_wire(
    tmp_path: Path,
) -> None:
    async with running_exchange(tmp_path) as exchange:
        conversation = exchange.converse()
        conversation.say(m.Ping(1))
        assert not described.violations
        conversation.outbox.push(wire.JSON.encode(m.Pong(1, "noon")))  # type: ignore[arg-type]
        conversation.session._reply(m.Ack(1))  # pyright: ignore[reportPrivateUsage]
        wrong, answer = described.violations
        assert "time_us" in wrong and "which no document says" in answer
        described.violations.clear()
