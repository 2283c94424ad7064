"""Every setting of a node: one TOML file, validated, with its documentation beside each value.

Invariant: an unknown key, a wrong type or a value out of range is refused by name before anything
starts; the file that `compex settings` prints is made from this module and reads back as the
defaults. The node and the command call this.
"""

import os
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Final, Literal, get_args, get_type_hints

import msgspec
from compex_client import messages as m
from msgspec import Meta, Struct, structs

from engine.port import MARK_BYTES_MIN, SpaceMarks
from engine.records import FEE_PPM_MAX, FEE_TIERS
from engine.rejects import CompexError
from gateway.limits import BURST_MIN, DEFAULT_LIMITS

ADDRESS: Final = "^(0x[0-9a-fA-F]{40})?$"  # or none
ENVIRONMENT: Final = {
    "COMPEX_DATABASE_URL": ("database", "url"),
    "COMPEX_RPC_URL": ("chain", "rpc_url"),
}
LAUNCH_MARKETS: Final = tuple(
    f"{hardware}|{region}|B|SPOT"
    for hardware in (
        "nv.h100-sxm-80g.x8.ib",
        "nv.h100-sxm-80g.x1",
        "nv.a100-sxm-80g.x8.ib",
        "nv.l40s-pcie-48g.x1",
        "nv.rtx4090-24g.x1",
    )
    for region in ("us-e", "us-w", "eu-n")
)


class SettingsError(CompexError):
    """The settings file cannot be used; the message names the key."""


class GatewaySettings(Struct, frozen=True, forbid_unknown_fields=True):
    host: Annotated[str, Meta(description="address to listen on")] = "127.0.0.1"
    port: Annotated[int, Meta(ge=0, le=65535, description="0 takes any free port")] = 8765
    administrator: Annotated[
        str,
        Meta(
            pattern=ADDRESS,
            description="wallet that may list, halt and resume markets; "
            "empty: one made at the first start, its key in administrator.key",
        ),
    ] = ""
    private_messages_kept: Annotated[
        int,
        Meta(
            ge=1_000,
            le=1 << 40,
            description="of each account's stream, so that who was cut off can resume it",
        ),
    ] = 100_000
    private_days_kept: Annotated[
        int, Meta(ge=0, le=36_500, description="older ones are not kept; 0: whatever their age")
    ] = 0

    connections: Annotated[
        int, Meta(ge=1, le=1_000_000, description="websockets held at once; one more gets 1013")
    ] = 12_000
    connections_per_address: Annotated[
        int,
        Meta(
            ge=1,
            le=1_000_000,
            description="of those from one address; behind a proxy all have the proxy's",
        ),
    ] = 12_000
    origins: Annotated[
        tuple[str, ...],
        Meta(
            description='pages that may open the websocket, as "https://host:port"; '
            "empty: those of the host that is asked. Bots, which name no origin, always may"
        ),
    ] = ()
    tls_certificate: Annotated[
        str, Meta(description="PEM file of the certificate chain; given, the port speaks TLS")
    ] = ""
    tls_key: Annotated[
        str, Meta(description="PEM file of its key; empty: it is in the certificate's file")
    ] = ""


class MarketSettings(Struct, frozen=True, forbid_unknown_fields=True):
    listed: Annotated[
        tuple[str, ...],
        Meta(description="markets listed at start, by symbol; already listed ones stay"),
    ] = LAUNCH_MARKETS


Rate = Annotated[int, Meta(ge=0, le=FEE_PPM_MAX)]


class FeeSettings(Struct, frozen=True, forbid_unknown_fields=True):
    maker_ppm: Annotated[
        tuple[Rate, ...],
        Meta(
            min_length=1,
            max_length=FEE_TIERS,
            description="what an order pays that waited in the book, millionths of price times "
            "quantity, for each tier from 0; every wallet begins in tier 0",
        ),
    ] = (0,)
    taker_ppm: Annotated[
        tuple[Rate, ...],
        Meta(
            min_length=1,
            max_length=FEE_TIERS,
            description="what the order pays that met it; at least as much as maker_ppm",
        ),
    ] = (0,)


Budget = Annotated[int, Meta(ge=1, le=10**9)]
SharedBudget = Annotated[int, Meta(ge=0, le=10**9)]
Burst = Annotated[int, Meta(ge=BURST_MIN, le=10**9)]


class LimitSettings(Struct, frozen=True, forbid_unknown_fields=True):
    requests_per_s: Annotated[
        Budget, Meta(description="of one connection, but for cancels; see hello.limits.weights")
    ] = DEFAULT_LIMITS.requests_per_s
    requests_burst: Annotated[
        Burst, Meta(description="so many at once, after a pause; a batch must fit in")
    ] = DEFAULT_LIMITS.requests_burst
    cancels_per_s: Annotated[Budget, Meta(description="of one connection, for cancels alone")] = (
        DEFAULT_LIMITS.cancels_per_s
    )
    cancels_burst: Annotated[Burst, Meta(description="so many cancels at once")] = (
        DEFAULT_LIMITS.cancels_burst
    )
    account_requests_per_s: Annotated[
        SharedBudget,
        Meta(description="of all connections of one wallet together; 0: not limited"),
    ] = DEFAULT_LIMITS.account_requests_per_s
    account_requests_burst: Annotated[Burst, Meta(description="so many of them at once")] = (
        DEFAULT_LIMITS.account_requests_burst
    )
    account_cancels_per_s: Annotated[
        SharedBudget, Meta(description="the same for cancels; 0 if and only if the other is")
    ] = DEFAULT_LIMITS.account_cancels_per_s
    account_cancels_burst: Annotated[Burst, Meta(description="so many cancels at once")] = (
        DEFAULT_LIMITS.account_cancels_burst
    )
    address_requests_per_s: Annotated[
        SharedBudget,
        Meta(
            description="of all connections from one IPv4 address or IPv6 /64 together, but not "
            "from this machine; 0: not limited"
        ),
    ] = DEFAULT_LIMITS.address_requests_per_s
    address_requests_burst: Annotated[Burst, Meta(description="so many of them at once")] = (
        DEFAULT_LIMITS.address_requests_burst
    )
    address_cancels_per_s: Annotated[
        SharedBudget, Meta(description="the same for cancels; 0 if and only if the other is")
    ] = DEFAULT_LIMITS.address_cancels_per_s
    address_cancels_burst: Annotated[Burst, Meta(description="so many cancels at once")] = (
        DEFAULT_LIMITS.address_cancels_burst
    )
    subscriptions: Annotated[
        int, Meta(ge=1, le=100_000, description="of one connection, at one time")
    ] = DEFAULT_LIMITS.subscriptions
    outbound_bytes: Annotated[
        int,
        Meta(ge=1 << 16, le=1 << 30, description="a reader further behind than this is closed"),
    ] = DEFAULT_LIMITS.outbound_bytes

    def limits(self) -> m.Limits:
        return structs.replace(DEFAULT_LIMITS, **structs.asdict(self))


FreeBytes = Annotated[int, Meta(ge=MARK_BYTES_MIN, le=1 << 50)]


class JournalSettings(Struct, frozen=True, forbid_unknown_fields=True):
    snapshot_commands: Annotated[
        int,
        Meta(ge=0, description="a snapshot after this many commands; 0: none is made by itself"),
    ] = 250_000
    snapshots_kept: Annotated[int, Meta(ge=1, le=1_000, description="the newest so many stay")] = 2
    history: Annotated[
        bool,
        Meta(description="false: what is older than the snapshots that stay is removed for good"),
    ] = True
    free_bytes_low: Annotated[
        FreeBytes,
        Meta(
            description="with fewer bytes free where the journal is, /ready and the log warn; "
            "every order is still taken"
        ),
    ] = SpaceMarks().low_bytes
    free_bytes_too_low: Annotated[
        FreeBytes,
        Meta(description="with fewer, only cancels are taken; less than free_bytes_low"),
    ] = SpaceMarks().too_low_bytes


class DatabaseSettings(Struct, frozen=True, forbid_unknown_fields=True):
    url: Annotated[
        str,
        Meta(description="PostgreSQL of the ledger; empty: an embedded one in the directory"),
    ] = ""


class ChainSettings(Struct, frozen=True, forbid_unknown_fields=True):
    rpc_url: Annotated[
        str, Meta(description="JSON-RPC of an Ethereum node; empty: an embedded chain")
    ] = ""
    keys_file: Annotated[
        str,
        Meta(
            description="TOML file with deployer, settler and publisher (hex private keys); "
            "needed with rpc_url"
        ),
    ] = ""
    arbiter: Annotated[
        str,
        Meta(
            pattern=ADDRESS,
            description="who decides on bonds in a vault deployed here, never the settler; empty: "
            "the deployer",
        ),
    ] = ""
    pauser: Annotated[
        str,
        Meta(
            pattern=ADDRESS,
            description="who may stop a vault deployed here, but for ways out; empty: the deployer",
        ),
    ] = ""
    token: Annotated[
        str,
        Meta(
            pattern=ADDRESS,
            description="USDC to settle in; empty: a test token is deployed",
        ),
    ] = ""
    confirmations: Annotated[
        int, Meta(ge=0, le=10_000, description="blocks on top before a block is final")
    ] = 0
    finality: Annotated[
        Literal["confirmations", "node"],
        Meta(description="who says what is final: confirmations, or the node's finalized block"),
    ] = "confirmations"
    embedded_rpc_port: Annotated[
        int,
        Meta(ge=-1, le=65535, description="JSON-RPC of the embedded chain; 0: any, -1: none"),
    ] = 8545


class SettlementSettings(Struct, frozen=True, forbid_unknown_fields=True):
    turn_seconds: Annotated[
        float, Meta(gt=0, le=3600, description="between two passes of settlement")
    ] = 1.0
    batch_wait_seconds: Annotated[
        int, Meta(ge=0, le=86_400, description="how long a fill waits for company in its batch")
    ] = 2
    fills_per_batch: Annotated[
        int, Meta(ge=1, le=4_000, description="a batch is sealed at this many fills")
    ] = 1_000
    batch_value_dollars: Annotated[
        int, Meta(ge=1, le=10**9, description="or as soon as its fills are worth this much")
    ] = 10_000
    fee_cap_gwei_max: Annotated[
        int, Meta(ge=1, le=10**6, description="for more per gas nothing is sent; it waits")
    ] = 500
    tip_gwei_max: Annotated[
        int, Meta(ge=0, le=10**6, description="of a first offer; one that is raised may go above")
    ] = 10
    raise_fee_seconds: Annotated[
        int,
        Meta(ge=1, le=86_400, description="not mined for so long, it is offered an eighth more"),
    ] = 60
    turns_per_reconciliation: Annotated[
        int, Meta(ge=1, le=1_000_000, description="passes between two reconciliations")
    ] = 60
    sign_within_seconds: Annotated[
        int,
        Meta(
            ge=0,
            le=3600,
            description="how long an order may wait for its owner's signature: then its account "
            "places no more; after twice that it is cancelled; after six times its fills are "
            "undone; 0: for ever, unsettled",
        ),
    ] = 5


class Settings(Struct, frozen=True, forbid_unknown_fields=True):
    gateway: Annotated[GatewaySettings, Meta(description="the port bots and people use")] = (
        GatewaySettings()
    )
    limits: Annotated[
        LimitSettings,
        Meta(
            description="what one connection, one wallet and one address may take; a burst is "
            "how much at once, *_per_s how fast that comes again"
        ),
    ] = LimitSettings()
    markets: Annotated[MarketSettings, Meta(description="what is traded")] = MarketSettings()
    fees: Annotated[
        FeeSettings,
        Meta(description="what trading costs; set at start for orders that come from then on"),
    ] = FeeSettings()
    journal: Annotated[
        JournalSettings, Meta(description="what a start begins with, what is kept, and room for it")
    ] = JournalSettings()
    database: Annotated[DatabaseSettings, Meta(description="the ledger's database")] = (
        DatabaseSettings()
    )
    chain: Annotated[ChainSettings, Meta(description="where money is")] = ChainSettings()
    settlement: Annotated[SettlementSettings, Meta(description="fills to escrow")] = (
        SettlementSettings()
    )


def load_settings(path: Path | None, environment: Mapping[str, str] = os.environ) -> Settings:
    """The file's settings, or the defaults; the environment overrides. Raises SettingsError."""
    try:
        text = path.read_text("utf-8") if path is not None else ""
        tables: dict[str, Any] = tomllib.loads(text)
        for name, (table, key) in ENVIRONMENT.items():
            if environment.get(name):
                tables.setdefault(table, {})[key] = environment[name]
        settings = msgspec.convert(tables, Settings)
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError, AttributeError, TypeError) as bad:
        raise SettingsError(f"{path}: {bad}") from bad
    except msgspec.ValidationError as bad:
        raise SettingsError(f"{path or 'the environment'}: {bad}") from bad
    if settings.chain.rpc_url and not settings.chain.keys_file:
        raise SettingsError("chain.keys_file is needed with chain.rpc_url")
    if settings.journal.free_bytes_too_low >= settings.journal.free_bytes_low:
        raise SettingsError("journal.free_bytes_too_low must be less than journal.free_bytes_low")
    limits = settings.limits
    if bool(limits.account_requests_per_s) != bool(limits.account_cancels_per_s):
        raise SettingsError("limits.account_requests_per_s and account_cancels_per_s: both or none")
    if bool(limits.address_requests_per_s) != bool(limits.address_cancels_per_s):
        raise SettingsError("limits.address_requests_per_s and address_cancels_per_s: both or none")
    makers, takers = settings.fees.maker_ppm, settings.fees.taker_ppm
    if len(makers) != len(takers) or any(a > b for a, b in zip(makers, takers, strict=True)):
        raise SettingsError("fees.maker_ppm must have as many tiers as fees.taker_ppm, none above")
    return settings


def example_settings() -> str:
    """A settings file with every key at its default and what it means."""
    lines: list[str] = []
    for table in Settings.__struct_fields__:
        lines += [f"# {_description(Settings, table)}", f"[{table}]"]
        defaults: Struct = getattr(Settings(), table)
        for key in defaults.__struct_fields__:
            value = msgspec.json.encode(getattr(defaults, key)).decode().replace(",", ", ")
            lines += [f"# {_description(type(defaults), key)}", f"{key} = {value}"]
        lines.append("")
    return "\n".join(lines)


def _description(struct: type[Struct], field: str) -> str:
    meta = get_args(get_type_hints(struct, include_extras=True)[field])[1]
    return meta.description
