import re
import stat
import tomllib
from concurrent.futures import ThreadPoolExecutor
from dataclasses import Field, fields
from pathlib import Path
from typing import Any

import pytest

from appliance.config import (
    SECTIONS,
    SETTINGS_VARIABLE,
    PeerSettings,
    Settings,
    deidentification_key,
    reference,
    secret_key,
    to_toml,
)
from appliance.errors import ConfigError
from tests.support.databases import settings_in

KEYS = [
    (section, key) for section, cls in SECTIONS.items() if cls is not None for key in fields(cls)
]


@pytest.mark.parametrize(("section", "key"), KEYS, ids=lambda each: getattr(each, "name", each))
def test_every_setting_is_documented(section: str, key: Field[Any]):
    assert key.metadata["doc"]
    assert f"# {key.name} =" in reference().partition(f"[{section}]")[2]


def test_the_reference_changes_nothing_when_it_is_used():
    assert Settings.parse(tomllib.loads(reference())) == Settings.parse({})


def test_every_line_of_the_reference_can_be_taken_into_use():
    setting = re.compile(r"^# (\w+ = )", re.MULTILINE)

    settings = Settings.parse(tomllib.loads(setting.sub(r"\1", reference())))

    assert settings.web.idle_minutes == Settings.parse({}).web.idle_minutes
    assert settings.web.certificate == Path("/etc/chest-ct-appliance/web.crt")
    assert settings.web.metrics_token_file == Path("/etc/chest-ct-appliance/metrics.token")
    assert settings.openid.client_id == "chest-ct"
    assert settings.dicom.tls_port == 2762
    assert settings.broker_url == "redis://host:6379/0"


def test_a_name_is_of_one_destination_whatever_its_kind():
    node = {"name": "ris", "ae_title": "RIS", "host": "h", "port": 104}
    system = {"name": "ris", "host": "h", "port": 2575}

    with pytest.raises(ConfigError, match="'ris' is one of"):
        Settings.parse({"dicom": {"destinations": [node]}, "messages": {"hl7": [system]}})


def test_every_port_that_is_listened_on_is_known():
    def ports(**dicom: Any) -> dict[bool, int]:
        return dict(Settings.parse({"dicom": {"port": 104, **dicom}}).dicom.ports)

    assert ports() == {False: 104}
    assert ports(tls_port=2762) == {False: 104, True: 2762}
    assert ports(tls_port=2762, tls_only=True) == {True: 2762}
    with pytest.raises(ConfigError, match="tls_only needs tls_port"):
        ports(tls_only=True)


def test_the_file_that_the_environment_names_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    file = tmp_path / "settings.toml"
    file.write_text('data_dir = "data"\n[receive]\nquiet_s = 3\n')
    monkeypatch.setenv(SETTINGS_VARIABLE, str(file))

    settings = Settings.load()

    assert settings.receive.quiet_s == 3.0
    assert settings.data_dir == tmp_path / "data"
    assert settings.database_url == f"sqlite:///{tmp_path}/data/appliance.db"


def test_peers_are_read_as_a_list_of_tables(tmp_path: Path):
    file = tmp_path / "settings.toml"
    file.write_text('[[dicom.peers]]\nae_title = "CT1"\naddress = "10.0.0.1"\n[[dicom.peers]]\n')

    assert Settings.load(file).dicom.peers == (
        PeerSettings(ae_title="CT1", address="10.0.0.1"),
        PeerSettings(),
    )


PACS = {"name": "pacs", "ae_title": "PACS", "host": "10.0.0.1", "port": 104}


@pytest.mark.parametrize(
    ("destinations", "said"),
    [
        ([{**PACS, "aetitle": "X"}], "[dicom.destinations] aetitle: did you mean ae_title?"),
        ([{"name": "pacs"}], "[dicom.destinations] lacks ae_title, host, port"),
        ([{**PACS, "port": 0}], "[dicom.destinations] port must be at least 1, not 0"),
        ([{**PACS, "ae_title": "A" * 17}], "1 to 16 printable ASCII characters"),
        ([{**PACS, "ae_title": "A\\B"}], "without a backslash"),
        ([{**PACS, "ae_title": ""}], "ae_title must be 1 to 16"),
        ([{**PACS, "host": " "}], "[dicom.destinations] host must not be empty"),
        ([PACS, {**PACS, "ae_title": "B"}], "name 'pacs' is there twice"),
        ([PACS, {**PACS, "name": "b"}], "ae_title 'PACS' is there twice"),
    ],
)
def test_a_destination_of_no_use_is_refused(destinations: list[dict[str, Any]], said: str):
    with pytest.raises(ConfigError) as refused:
        Settings.parse({"dicom": {"destinations": destinations}})

    assert said in str(refused.value)


def test_a_standing_query_asks_a_destination_that_is_there_to_be_asked():
    standing = {"standing_queries": [{"destination": "pasc"}]}
    with pytest.raises(ConfigError, match=r"no destination is called 'pasc': did you mean pacs\?"):
        Settings.parse({"dicom": {"destinations": [PACS]}, "retrieve": standing})
    with pytest.raises(ConfigError, match="there is none in"):
        Settings.parse({"retrieve": standing})

    standing = {"standing_queries": [{"destination": "pacs"}]}
    with pytest.raises(ConfigError, match="set query = true"):
        Settings.parse({"dicom": {"destinations": [PACS]}, "retrieve": standing})
    settings = Settings.parse(
        {"dicom": {"destinations": [{**PACS, "query": True}]}, "retrieve": standing}
    )
    assert settings.retrieve.active


@pytest.mark.parametrize(
    ("document", "said"),
    [
        ({"dicmo": {}}, "unknown setting dicmo: did you mean dicom?"),
        ({"dicom": {"prot": 1}}, "unknown setting [dicom] prot: did you mean port?"),
        ({"dicom": {"peers": [{"adress": "*"}]}}, "did you mean address?"),
        ({"database": {"uri": "x"}}, "unknown setting [database] uri: did you mean url?"),
        (
            {"web": {"zzz": 1}},
            "known are certificate, host, https, idle_minutes, metrics_token_file",
        ),
        ({"web": {"port": "80"}}, "[web] port must be a whole number, not '80'"),
        ({"web": {"port": True}}, "[web] port must be a whole number, not True"),
        ({"web": {"port": 0}}, "[web] port must be at least 1, not 0"),
        ({"receive": {"quiet_s": float("inf")}}, "[receive] quiet_s must be at least 0, not inf"),
        ({"analysis": {"engine": "pytorch"}}, "did you mean torch?"),
        ({"dicom": {"port": 65536}}, "[dicom] port must be at most 65535, not 65536"),
        ({"web": {"port": 70000}}, "[web] port must be at most 65535, not 70000"),
        ({"dicom": {"organisation": " "}}, "[dicom] organisation must have 1 to 64 printable"),
        ({"dicom": {"organisation": "x" * 65}}, "[dicom] organisation must have 1 to 64"),
        ({"dicom": {"organisation": "a\\b"}}, "none of them a backslash"),
        ({"dicom": {"organisation": "a\nb"}}, "[dicom] organisation must have 1 to 64 printable"),
        ({"analysis": {"heat_map": 1}}, "[analysis] heat_map must be true or false, not 1"),
        ({"analysis": {"weights_dir": 3}}, "[analysis] weights_dir must be a path"),
        ({"dicom": {"peers": "*"}}, "[dicom] peers must be a list of tables"),
        ({"dicom": 3}, "dicom must be a table, written [dicom]"),
        ({"data_dir": ""}, "data_dir must be the path of a folder"),
    ],
)
def test_what_cannot_be_used_is_refused_with_what_to_write(document: dict[str, Any], said: str):
    with pytest.raises(ConfigError) as refused:
        Settings.parse(document)

    assert said in str(refused.value)


@pytest.mark.parametrize("content", [None, "not toml", "\xff"])
def test_a_file_that_cannot_be_read_is_named(tmp_path: Path, content: str | None):
    file = tmp_path / "settings.toml"
    if content is not None:
        file.write_text(content, encoding="latin-1")

    with pytest.raises(ConfigError, match=str(file)):
        Settings.load(file)


def test_written_settings_read_back_the_same(tmp_path: Path):
    odd = tmp_path / 'a "quoted" \\ folder'
    document = {"data_dir": str(odd), "receive": {"quiet_s": 2.5}, "web": {"port": 81}}

    assert tomllib.loads(to_toml(document)) == document


def test_the_secret_key_is_made_once_and_for_this_user_alone(tmp_path: Path):
    settings = settings_in(tmp_path)

    with ThreadPoolExecutor(8) as threads:
        keys = set(threads.map(lambda _: secret_key(settings), range(16)))

    path = settings.data_dir / "secret.key"
    assert keys == {path.read_bytes()}
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert [p.name for p in Path(settings.data_dir).glob("secret.key*")] == ["secret.key"]


def test_the_key_of_exports_is_another_one_that_stays(tmp_path: Path):
    settings = settings_in(tmp_path)

    key = deidentification_key(settings)

    assert key == deidentification_key(settings) != secret_key(settings)
    path = settings.data_dir / "deidentification.key"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_a_damaged_key_is_never_used(tmp_path: Path):
    settings = settings_in(tmp_path)
    deidentification_key(settings)
    (settings.data_dir / "deidentification.key").write_bytes(b"")

    with pytest.raises(ConfigError, match="restore it"):
        deidentification_key(settings)


def test_nobody_else_may_look_into_the_data_folders(tmp_path: Path):
    settings = settings_in(tmp_path)

    settings.prepare()

    for folder in (settings.data_dir, settings.store_dir, settings.analyses_dir, settings.run_dir):
        assert stat.S_IMODE(folder.stat().st_mode) == 0o700


RULE = {"name": "r", "destinations": ["pacs"], "objects": ["seg"]}


@pytest.mark.parametrize(
    ("rules", "said"),
    [
        ([{**RULE, "destinations": ["pasc"]}], "called 'pasc': did you mean pacs?"),
        ([{**RULE, "objects": ["sge"]}], "not 'sge'; did you mean seg?"),
        ([{**RULE, "objects": "seg"}], "[routing.rules] objects must be a list of texts"),
        ([{**RULE, "objects": []}], "'r': objects must not be empty"),
        ([{**RULE, "modalty": "CT"}], "[routing.rules] modalty: did you mean modality?"),
        ([{**RULE, "when": "confirm"}], "did you mean confirmed?"),
        ([{**RULE, "probability_at_least": 1.1}], "must be at most 1"),
        ([{"name": "r"}], "[routing.rules] lacks destinations, objects"),
        ([RULE, RULE], "name 'r' is there twice"),
        ([{**RULE, "outcome": "REJECTED"}], 'objects must be ["images"]'),
        (
            [{**RULE, "outcome": "REJECTED", "objects": ["images"], "lesions": True}],
            "leave out positive",
        ),
    ],
)
def test_a_rule_of_no_use_is_refused(rules: list[dict[str, Any]], said: str):
    with pytest.raises(ConfigError) as refused:
        Settings.parse({"dicom": {"destinations": [PACS]}, "routing": {"rules": rules}})

    assert said in str(refused.value)


def test_rules_and_destinations_survive_being_written():
    document = {"dicom": {"destinations": [PACS]}, "routing": {"rules": [RULE]}}

    (rule,) = Settings.parse(tomllib.loads(to_toml(document))).routing.rules

    assert (rule.destinations, rule.objects) == (("pacs",), ("seg",))
    assert (rule.positive, rule.probability_at_least, rule.lesions) == (None, None, None)
