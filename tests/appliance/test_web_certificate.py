from pathlib import Path

import pytest

from appliance import web_certificate
from appliance.config import Settings
from appliance.errors import ConfigError
from tests.support.certificates import authority, signed


def settings_with(folder: Path, **web: object) -> Settings:
    return Settings.parse({"data_dir": str(folder / "data"), "web": web}, folder=folder)


@pytest.mark.parametrize(
    ("web", "https"),
    [
        ({}, False),
        ({"host": "::1"}, False),
        ({"https": "on"}, True),
        ({"host": "0.0.0.0"}, True),
        ({"host": "ct.hospital.example"}, True),
        ({"host": "0.0.0.0", "https": "off"}, False),
    ],
)
def test_pages_are_encrypted_wherever_other_machines_reach_them(
    tmp_path: Path, web: dict[str, object], *, https: bool
):
    settings = settings_with(tmp_path, **web)

    assert settings.web.serves_https is https
    assert settings.web.address.startswith("https://" if https else "http://")
    assert (web_certificate.prepare(settings) is not None) is https


def test_a_certificate_is_made_once_and_its_key_kept_to_ourselves(tmp_path: Path):
    settings = settings_with(tmp_path, host="10.1.2.3", https="on")

    first, second = web_certificate.prepare(settings), web_certificate.prepare(settings)

    assert first is not None
    assert first == second
    assert first.is_own
    assert first.key.stat().st_mode & 0o777 == 0o600
    assert len(first.fingerprint.split(":")) == 32


def test_a_certificate_is_made_anew_before_it_expires(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    settings = settings_with(tmp_path, https="on")
    monkeypatch.setattr(web_certificate, "GOOD_FOR", web_certificate.RENEWED_BEFORE)
    first = web_certificate.prepare(settings)
    monkeypatch.undo()

    second = web_certificate.prepare(settings)

    assert first is not None
    assert second is not None
    assert second.expires_at > first.expires_at


def test_the_hospitals_own_files_are_served(tmp_path: Path):
    given = signed(tmp_path, "web", authority(tmp_path, "hospital"), bears="DNS:ct.example")
    settings = settings_with(
        tmp_path, https="on", certificate=str(given.certificate), private_key=str(given.key)
    )

    found = web_certificate.prepare(settings)

    assert found is not None
    assert (found.file, found.key, found.is_own) == (given.certificate, given.key, False)


@pytest.mark.parametrize("fault", ["missing", "no PEM", "another key"])
def test_files_that_cannot_be_served_are_refused_in_a_sentence(tmp_path: Path, fault: str):
    by = authority(tmp_path, "hospital")
    given, other = signed(tmp_path, "web", by), signed(tmp_path, "other", by)
    files = {"certificate": str(given.certificate), "private_key": str(given.key)}
    settings = settings_with(tmp_path, https="on", **files)
    match fault:
        case "missing":
            given.key.unlink()
        case "no PEM":
            given.certificate.write_text("no certificate")
        case "another key":
            other.key.replace(given.key)

    with pytest.raises(ConfigError, match="key"):
        web_certificate.prepare(settings)


def test_a_certificate_without_its_key_is_refused(tmp_path: Path):
    with pytest.raises(ConfigError, match="go together"):
        settings_with(tmp_path, certificate="web.crt")
