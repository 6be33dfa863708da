"""What every page needs from the process that serves it."""

from dataclasses import dataclass
from typing import Final

from flask import current_app

from appliance.config import Settings
from appliance.database import Database
from webui.live import LiveFeed

EXTENSION: Final = "appliance"


@dataclass(frozen=True)
class Resources:
    """Made once by `create_app` and shared by all threads."""

    settings: Settings
    database: Database
    feed: LiveFeed


def resources() -> Resources:
    """The resources of the application that handles the current request."""
    found: Resources = current_app.extensions[EXTENSION]
    return found
