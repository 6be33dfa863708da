from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from dicomweb_client.api import DICOMwebClient
from dicomweb_client.session_utils import create_session_from_user_pass
from flask import Flask
from flask.testing import FlaskClient
from pydicom.dataset import Dataset

from appliance import accounts
from appliance.part10 import read_file, read_header
from appliance.reception import Command, Reception
from appliance.store import Store
from tests.support.instances import as_file
from tests.webui.browser import serving
from tests.webui.world import NAME, PASSWORD, World


@dataclass(frozen=True)
class Archive:
    """What the appliance holds, received through its own reception."""

    world: World
    reception: Reception
    folder: Path

    def take(self, *datasets: Dataset, transfer_syntax_uid: str = "1.2.840.10008.1.2.1") -> None:
        for dataset in datasets:
            path = as_file(dataset, self.folder / "made.dcm", transfer_syntax_uid)
            self.take_file(path)

    def take_file(self, path: Path) -> bytes:
        """Receive a file; what is held of it: its bytes behind the meta information."""
        file = read_file(path.read_bytes())
        header = read_header(file.dataset, file.transfer_syntax_uid)
        command = Command(
            sop_class_uid=header.sop_class_uid,
            sop_instance_uid=header.sop_instance_uid,
            transfer_syntax_uid=file.transfer_syntax_uid,
            source_ae="CT1",
        )
        self.reception.take(file.dataset, command)
        return file.dataset


@pytest.fixture
def archive(world: World, tmp_path: Path) -> Archive:
    store = Store(world.settings.store_dir)
    return Archive(world, Reception(world.database, store, min_free_bytes=0), tmp_path)


@pytest.fixture
def address(app: Flask) -> Iterator[str]:
    """The DICOMweb address of a real server."""
    with serving(app) as server:
        yield f"{server}/dicom-web"


Connect = Callable[..., DICOMwebClient]


@pytest.fixture
def connect(address: str) -> Connect:
    """A client with name and password."""

    def connected(name: str = NAME, password: str = PASSWORD, **options: Any) -> DICOMwebClient:
        session = create_session_from_user_pass(name, password)
        return DICOMwebClient(address, session=session, **options)

    return connected


@pytest.fixture
def peer(connect: Connect) -> DICOMwebClient:
    return connect()


@pytest.fixture
def get(app: Flask) -> Callable[..., Any]:
    """A GET with name and password, without a network."""
    client: FlaskClient = app.test_client()

    def answered(path: str, *, accept: str = "*/*", kept: str = "", **options: Any) -> Any:
        headers = {"Accept": accept, "If-None-Match": kept}
        return client.get(f"/dicom-web{path}", auth=(NAME, PASSWORD), headers=headers, **options)

    return answered


@pytest.fixture
def people(world: World) -> None:
    """An account for each role, named as the role."""
    with world.database.transaction() as db:
        for role in accounts.Role:
            accounts.add(db, role.value, password=PASSWORD, role=role, actor="test")
