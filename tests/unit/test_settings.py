"""Settings: the printed example is the defaults, and whatever is wrong is refused by name."""

import itertools
from pathlib import Path

import pytest

from gateway.limits import DEFAULT_LIMITS
from gateway.settings import Settings, SettingsError, example_settings, load_settings


def written(directory: Path, text: str) -> Path:
    path = directory / "compex.toml"
    path.write_text(text, "utf-8")
    return path


def test_the_printed_example_reads_back_as_the_defaults(tmp_path: Path) -> None:
    assert load_settings(written(tmp_path, example_settings()), {}) == Settings()


def test_every_key_of_the_example_says_what_it_means() -> None:
    lines = example_settings().splitlines()
    for before, line in itertools.pairwise(lines):
        if "=" in line and not line.startswith("#"):
            assert before.startswith("# "), line


def test_no_file_means_the_defaults() -> None:
    assert load_settings(None, {}) == Settings()


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("[gateway]\nprot = 1\n", "prot"),
        ("[gatway]\n", "gatway"),
        ('[gateway]\nport = "80"\n', "$.gateway.port"),
        ("[gateway]\nport = 70000\n", "$.gateway.port"),
        ('[gateway]\nadministrator = "0x12"\n', "$.gateway.administrator"),
        ("[settlement]\nfills_per_batch = 0\n", "$.settlement.fills_per_batch"),
        ("[settlement]\nturn_seconds = -1\n", "$.settlement.turn_seconds"),
        ("gateway = 5\n", "$.gateway"),
        ("[fees]\nmaker_ppm = [-1]\n", "$.fees.maker_ppm"),
        ("[fees]\ntaker_ppm = [50001]\n", "$.fees.taker_ppm"),
        ("[fees]\nmaker_ppm = []\ntaker_ppm = []\n", "$.fees.maker_ppm"),
        (f"[fees]\ntaker_ppm = {[0] * 17}\n", "$.fees.taker_ppm"),
        ("[fees]\nmaker_ppm = [2]\ntaker_ppm = [1]\n", "fees.maker_ppm"),
        ("[fees]\nmaker_ppm = [1]\ntaker_ppm = [1, 2]\n", "fees.maker_ppm"),
        ("[journal]\nfree_bytes_low = 5\n", "$.journal.free_bytes_low"),
        ("[journal]\nfree_bytes_too_low = 1073741824\n", "journal.free_bytes_too_low"),
        ("[limits]\nrequests_per_s = 0\n", "$.limits.requests_per_s"),
        ("[limits]\nrequests_burst = 64\n", "$.limits.requests_burst"),
        ("[limits]\naddress_cancels_per_s = -1\n", "$.limits.address_cancels_per_s"),
        ("[limits]\naddress_cancels_per_s = 0\n", "address_requests_per_s"),
        ("[limits]\naccount_requests_per_s = 0\n", "account_cancels_per_s"),
        ("[gateway\n", "compex.toml"),
        ('[chain]\nrpc_url = "http://127.0.0.1:1"\n', "keys_file"),
    ],
)
def test_a_wrong_setting_is_refused_by_its_name(tmp_path: Path, text: str, name: str) -> None:
    with pytest.raises(SettingsError) as refused:
        load_settings(written(tmp_path, text), {})
    assert name in str(refused.value)


def test_limits_are_what_the_file_says_or_the_defaults(tmp_path: Path) -> None:
    assert Settings().limits.limits() == DEFAULT_LIMITS
    path = written(tmp_path, "[limits]\naccount_requests_per_s = 7\nsubscriptions = 3\n")
    limits = load_settings(path, {}).limits.limits()
    assert (limits.account_requests_per_s, limits.subscriptions) == (7, 3)
    assert limits.weights == DEFAULT_LIMITS.weights


def test_a_missing_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SettingsError):
        load_settings(tmp_path / "none.toml", {})


def test_the_environment_overrides_the_file(tmp_path: Path) -> None:
    path = written(tmp_path, '[chain]\nkeys_file = "keys.toml"\n[database]\nurl = "a"\n')
    settings = load_settings(path, {"COMPEX_DATABASE_URL": "b", "COMPEX_RPC_URL": "http://c"})
    assert (settings.database.url, settings.chain.rpc_url) == ("b", "http://c")
