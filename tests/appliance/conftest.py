from pathlib import Path

import pytest

from appliance.config import Settings
from tests.support.databases import settings_in


@pytest.fixture(params=["sqlite", "postgresql"])
def settings(request: pytest.FixtureRequest, tmp_path: Path) -> Settings:
    """The core's rules hold on both databases, so its tests run on both."""
    if request.param == "sqlite":
        return settings_in(tmp_path)
    server = request.getfixturevalue("postgresql")
    template = request.getfixturevalue("postgresql_template")
    return settings_in(tmp_path, database={"url": server.create(template=template)})
