"""Where a setting's value comes from, and what is said about a wrong one."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from edge.control.settings import parse_settings
from edge.effective import default_home, load
from edge.errors import ConfigurationError
from edge.reference import DOCUMENTS, documents
from edge.settings import FurtherModel, declared, declared_of_a_model
from tests.conftest import RunEdge


def refusal(home: Path, env: dict[str, str] | None = None, flags: dict[str, tuple[str, str]] | None = None) -> str:
    with pytest.raises(ConfigurationError) as caught:
        load(home, env or {}, flags or {})
    assert "\n" not in caught.value.message
    return caught.value.message


def write(home: Path, text: str) -> None:
    (home / "edge.toml").write_text(text)


def test_the_flag_wins_over_environment_over_file_over_default(home: Path) -> None:
    def port() -> tuple[int, str]:
        effective = load(home, env, flags)
        return effective.settings.server.port, effective.origins["server.port"].where

    env: dict[str, str] = {}
    flags: dict[str, tuple[str, str]] = {}
    assert port() == (8080, "default")
    write(home, "[server]\nport = 1001\n")
    assert port() == (1001, str(home / "edge.toml"))
    env["EDGE_SERVER__PORT"] = "1002"
    assert port() == (1002, "EDGE_SERVER__PORT")
    flags["server.port"] = ("1003", "--port")
    assert port() == (1003, "--port")


def test_every_setting_can_come_from_the_environment(home: Path) -> None:
    for setting in declared():
        default = setting.field.get_default()
        if default not in (None, "", ()):
            effective = load(home, {setting.env: str(default)}, {})
            assert effective.value(setting) == default
            assert effective.origins[setting.key].source == "env"


def test_a_value_out_of_range_names_key_source_and_range(home: Path) -> None:
    message = refusal(home, {"EDGE_SERVER__PORT": "99999"})
    assert message == (
        "server.port = '99999' (from EDGE_SERVER__PORT) is refused: it must be a whole number from 0 to 65535"
    )


def test_a_wrong_word_lists_the_right_ones(home: Path) -> None:
    write(home, "[log]\nlevel = 'loud'\n")
    assert refusal(home).endswith("edge.toml) is refused: it must be one of debug, info, warning, error")


@pytest.mark.parametrize("value", ["nan", "inf", "-1", "soon"])
def test_durations_are_finite_and_positive(home: Path, value: str) -> None:
    assert "above 0" in refusal(home, flags={"engine.wedge_timeout_s": (value, "--set engine.wedge_timeout_s")})


def test_an_unknown_setting_lists_its_siblings(home: Path) -> None:
    write(home, "[auth]\nmod = 'always'\n")
    message = refusal(home)
    assert "unknown setting `auth.mod`" in message
    assert message.endswith("auth has mode, keys_file")


def test_an_unknown_section_lists_the_sections(home: Path) -> None:
    assert "unknown section `servr` in EDGE_SERVR__PORT: sections are server, " in refusal(
        home, {"EDGE_SERVR__PORT": "1"}
    )


def test_a_setting_outside_a_table_says_how_to_write_it(home: Path) -> None:
    write(home, "server = 3\n")
    assert "write [server]" in refusal(home)


def test_broken_toml_is_named_with_its_line(home: Path) -> None:
    write(home, "[server\n")
    message = refusal(home)
    assert str(home / "edge.toml") in message
    assert "line 1" in message


def test_a_file_that_is_no_text_is_refused(home: Path) -> None:
    (home / "edge.toml").write_bytes(b"\xff\xfe")
    assert "is not UTF-8 text" in refusal(home)


def test_half_of_a_tls_pair_is_refused(home: Path) -> None:
    message = refusal(home, {"EDGE_SERVER__TLS_CERT": "/c.pem"})
    assert "belong together" in message
    assert "EDGE_SERVER__TLS_CERT" in message


def test_a_number_format_without_its_kernels_is_refused(home: Path) -> None:
    message = refusal(home, {"EDGE_ENGINE__KV_TYPE": "q8_0", "EDGE_ENGINE__FLASH_ATTENTION": "off"})
    assert "set engine.flash_attention to auto or on" in message


def test_foreign_variables_and_empty_values_are_left_alone(home: Path) -> None:
    env = {"EDGE_PORT": "tcp://10.0.0.1:80", "EDGE_HOME": "/x", "EDGE_API_KEY": "k", "EDGE_SERVER__TLS_CERT": ""}
    assert load(home, env, {}).settings.server.port == 8080


def test_the_settings_file_may_lie_outside_the_home(home: Path, tmp_path: Path) -> None:
    write(home, "[engine]\nslots = 2\n")
    elsewhere = tmp_path / "node.toml"
    elsewhere.write_text("[engine]\nslots = 3\n")
    effective = load(home, {"EDGE_SETTINGS": str(elsewhere)}, {})
    assert effective.settings.engine.slots == 3
    assert effective.file == elsewhere and effective.origins["engine.slots"].where == str(elsewhere)
    assert load(home, {"EDGE_SETTINGS": ""}, {}).settings.engine.slots == 2


def test_a_settings_file_that_was_named_must_be_there(home: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match=r"there is no .*lost\.toml, which EDGE_SETTINGS names"):
        load(home, {"EDGE_SETTINGS": str(tmp_path / "lost.toml")}, {})


def test_home_follows_the_environment(tmp_path: Path) -> None:
    assert default_home({"EDGE_HOME": str(tmp_path)}) == tmp_path
    assert default_home({"XDG_DATA_HOME": str(tmp_path)}) in (tmp_path / "edge", Path("/var/lib/edge"))


def test_the_example_file_is_a_valid_settings_file_once_uncommented(home: Path) -> None:
    names = {setting.name for setting in (*declared(), *declared_of_a_model())}
    lines = documents()["edge.example.toml"].splitlines()
    shown = [line[2:] if line[2:].split(" = ")[0] in {*names, "[models.NAME]"} else line for line in lines]
    write(home, "\n".join(shown))
    effective = load(home, {}, {})
    assert {origin.source for origin in effective.origins.values()} == {"file"}
    assert effective.settings.models["NAME"].model_fields_set == set(FurtherModel.model_fields)


def test_the_generated_documents_are_up_to_date() -> None:
    for name, text in documents().items():
        assert (DOCUMENTS / name).read_text("utf-8") == text, f"{name}: run `make reference`"


# --- further models ---------------------------------------------------------------------------------------------------


def test_further_models_are_tables_of_the_file(home: Path) -> None:
    write(
        home,
        "[model]\naliases = ['house']\n[models.big]\nsource = '/m/big.gguf'\naliases = ['b']\nidle_s = 60\n[models.small]\n",
    )
    models = load(home, {}, {}).settings.models
    assert list(models) == ["big", "small"]
    assert (models["big"].source, models["big"].aliases, models["big"].idle_s) == ("/m/big.gguf", ("b",), 60.0)
    assert (models["small"].source, models["small"].pinned, models["small"].slots) == ("", False, 0)


def test_aliases_from_outside_the_file_have_commas_between_them(home: Path) -> None:
    effective = load(home, {"EDGE_MODEL__ALIASES": "gpt-4o-mini, house"}, {})
    assert effective.settings.model.aliases == ("gpt-4o-mini", "house")
    assert "a list of names" in refusal(home, {"EDGE_MODEL__ALIASES": "two words"})


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (
            "[models.a]\nsorce = 'x'",
            "unknown setting `models.a.sorce` in {file}: models.NAME has source, aliases, pinned",
        ),
        (
            "[models.a]\nslots = 200",
            "models.a.slots = 200 (from {file}) is refused: it must be a whole number from 0 to 128",
        ),
        ("[models.a]\nidle_s = -1", "it must be a number from 0 to"),
        (
            "[models.a]\npinned = 'perhaps'",
            "models.a.pinned = 'perhaps' (from {file}) is refused: it must be true or false",
        ),
        (
            "[models.a]\naliases = ['x y']",
            "models.a.aliases = ['x y'] (from {file}) is refused: it must be a list of names",
        ),
        ("[models.a]\npinned = true\nidle_s = 5", "[models.a] in {file}: pinned and idle_s exclude each other"),
        ("[models.'a b']", "[models.a b] in {file} is no name: it has letters, digits"),
        ("[models.a.b]", "unknown setting `models.a.b` in {file}: models.NAME has source"),
        ("models = 3", "`models` in {file} must hold tables: write [models.NAME]"),
        ("[models]\na = 3", "`models` in {file} must hold tables: write [models.NAME]"),
    ],
)
def test_a_wrong_table_of_a_model_is_named_with_the_cure(home: Path, text: str, said: str) -> None:
    write(home, text)
    assert said.format(file=home / "edge.toml") in refusal(home)


@pytest.mark.parametrize(
    "text",
    [
        "[models.edge-builtin]",
        "[model]\nalias = 'a'\n[models.a]",
        "[model]\nname = '/m/a.gguf'\n[models.a]",
        "[model]\naliases = ['a']\n[models.a]",
        "[models.a]\naliases = ['b']\n[models.b]",
        "[models.a]\naliases = ['c']\n[models.b]\naliases = ['c']",
        "[models.a]\naliases = ['a']",
    ],
)
def test_no_two_models_answer_to_one_name(home: Path, text: str) -> None:
    write(home, text)
    assert "answer to the name" in refusal(home)


def test_further_models_come_from_the_file_only(home: Path) -> None:
    for message in (
        refusal(home, {"EDGE_MODELS__A": "x"}),
        refusal(home, flags={"models.a.source": ("x", "--set models.a.source")}),
    ):
        assert "in the file only" in message


def test_what_edge_settings_shows_is_a_settings_file(home: Path, run_edge: RunEdge) -> None:
    write(home, "[models.'a.b']\nsource = '/m/x.gguf'\naliases = ['x', 'y']\n")
    shown = run_edge("settings").stdout
    before = load(home, {}, {}).settings
    write(home, shown)
    assert load(home, {}, {}).settings == before
    assert '[models."a.b"]' in run_edge("settings", "--changed").stdout


@pytest.mark.parametrize(
    ("variable", "address", "cure"),
    [
        ("EDGE_FLEET__URL", "https://robot:{0}@gateway/v1", "fleet.api_key_file"),
        ("EDGE_FLEET__URL", "https://{0}@gateway/v1", "fleet.api_key_file"),
        ("EDGE_OTLP__ENDPOINT", "http://robot:{0}@collector:4318", "otlp.headers_file"),
        ("EDGE_MQTT__URL", "mqtts://robot:{0}@broker", "mqtt.password_file"),
    ],
)
def test_a_password_in_an_address_is_refused_with_the_place_for_it_and_not_shown(
    home: Path, variable: str, address: str, cure: str
) -> None:
    with pytest.raises(ConfigurationError, match="must hold no") as refused:
        load(home, {variable: address.format("s3cret")}, {})
    assert cure in refused.value.message and "s3cret" not in refused.value.message


def test_an_at_sign_in_a_path_is_no_password(home: Path) -> None:
    address = "https://gateway/v1/@robots?to=a@b"
    assert load(home, {"EDGE_FLEET__URL": address}, {}).settings.fleet.url == address


@pytest.mark.parametrize(
    "line", ['[broker]\nurl = "mqtts://u:s3cret@b"', '[nodes]\nfallback_url = "https://u:s3cret@b/v1"']
)
def test_a_fleets_addresses_hold_none_either(line: str) -> None:
    with pytest.raises(ConfigurationError, match="must hold no user and no password") as refused:
        parse_settings(line, "fleet.toml: ")
    assert "s3cret" not in refused.value.message


def test_a_sink_shows_no_password_of_its_address(run_edge: RunEdge, home: Path) -> None:
    done = run_edge("fleet", "sink", "--url", "mqtt://u:s3cret@127.0.0.1", "--db", str(home / "sink.db"))
    assert done.returncode == 2 and "use --username and --password-file" in done.stderr
    assert "s3cret" not in done.stdout + done.stderr


@pytest.mark.parametrize(
    ("where", "said"),
    [("~nobody-of-that-name/edge", "no home directory"), (os.fsdecode(b"/srv/\xe9dge"), "is no UTF-8 text")],
)
def test_a_home_that_cannot_be_is_named_with_the_cure(where: str, said: str) -> None:
    with pytest.raises(ConfigurationError, match=f"{said}.* with EDGE_HOME or --home"):
        default_home({"EDGE_HOME": where})


def test_a_settings_file_that_a_power_cut_has_emptied_is_spoken_of(
    home: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (home / "edge.toml").write_text("")
    assert load(home, {}, {}).settings.server.port == 8080
    assert [record.getMessage() for record in caplog.records] == [
        f"{home / 'edge.toml'} is empty, so nothing in it counts: if that is not meant, it was cut short; restore it"
    ]
