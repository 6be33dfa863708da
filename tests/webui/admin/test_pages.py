"""What the single pages show and do."""

import re
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from flask.testing import FlaskClient
from sqlalchemy import select

from appliance import accounts, deliveries, doctor, lifecycle
from appliance.accounts import Role
from appliance.config import Settings
from appliance.database import utc_now
from appliance.deliveries import Content, Kind
from appliance.lifecycle import FinishedAnalysis, State
from appliance.reception import Reception
from appliance.store import Store
from appliance.tables import Account, AuditEntry, Delivery
from dicom_node import tasks
from dicom_node.scp import listening
from pipelines.weights import open_bundle, shipped_weights
from tests.webui.world import PASSWORD, World, sign_in
from webui.admin import configuration, models, queues, users

Post = Callable[..., Any]


def ready(world: World, study_uid: str = "1.2.3") -> int:
    """The number of a study with a result."""
    study_id = world.receive(study_uid)
    finished = FinishedAnalysis(
        folder=f"analyses/{study_id}",
        probability=0.9,
        positive=True,
        lesion_count=1,
        lesion_volume_ml=3.0,
    )
    lifecycle.finish(world.database, world.claim(study_id), finished)
    return study_id


def failed_delivery(world: World) -> int:
    study_id = ready(world)
    with world.database.transaction() as db:
        subject = deliveries.latest(db, study_id)
        assert subject is not None
        deliveries.queue(db, subject, destination="pacs", kind=Kind.DICOM, contents={Content.SEG})
    order = deliveries.claim_next(world.database, "pacs", lease_s=60)
    assert order is not None
    deliveries.fail(world.database, order, "no association with <b>PACS</b>")
    return order.id


def test_the_overview_says_what_is_wrong_and_leads_there(world: World, administrator: FlaskClient):
    world.fail(world.claim(world.receive("1.2.3")), "broken")

    page = administrator.get("/admin").text

    assert "Failed studies: 1 failed." in page
    assert '<a href="/admin/queues">Open</a>' in page


def test_the_overview_draws_the_last_day(world: World, administrator: FlaskClient):
    ready(world)

    page = administrator.get("/admin").text

    hour = f"{utc_now():%H}:00"
    assert f'<tr><th scope="row">{hour}</th><td>1</td><td>1</td><td>0</td></tr>' in page


def test_a_failed_study_is_tried_again(world: World, administrator: FlaskClient, post: Post):
    study_id = world.receive("1.2.3")
    world.fail(world.claim(study_id), "broken <i>file</i>")
    page = administrator.get("/admin/queues").text
    assert "broken &lt;i&gt;file&lt;/i&gt;" in page

    assert post(f"/admin/queues/studies/{study_id}/retry").status_code == 302

    assert "No study failed" in administrator.get("/admin/queues").text
    again = post(f"/admin/queues/studies/{study_id}/retry")
    assert again.status_code == 409
    assert queues.NOT_THERE_ANY_MORE in again.text
    claim = lifecycle.claim(world.database, study_id, owner="test", lease_s=60)
    assert claim is not None


def test_a_delivery_is_tried_again_and_dropped(
    world: World, administrator: FlaskClient, post: Post
):
    delivery_id = failed_delivery(world)
    page = administrator.get("/admin/queues").text
    assert "no association with &lt;b&gt;PACS&lt;/b&gt;" in page

    assert post(f"/admin/queues/deliveries/{delivery_id}/retry").status_code == 302
    assert state_of(world, delivery_id) == "WAITING"

    assert post(f"/admin/queues/deliveries/{delivery_id}/drop").status_code == 302
    assert state_of(world, delivery_id) == "DROPPED"
    late = post(f"/admin/queues/deliveries/{delivery_id}/retry")
    assert late.status_code == 409
    assert f"delivery {delivery_id} is DROPPED" in late.text
    with world.database.snapshot() as db:
        said = db.scalars(select(AuditEntry).where(AuditEntry.tag.like("deliveries:%"))).all()
    assert [(entry.actor, entry.tag) for entry in said] == [
        ("chief", "deliveries:delivery:retried"),
        ("chief", "deliveries:delivery:dropped"),
    ]


def test_all_that_was_given_up_is_tried_again(world: World, post: Post):
    delivery_id = failed_delivery(world)

    assert post("/admin/queues/deliveries/retry").status_code == 302

    assert state_of(world, delivery_id) == "WAITING"


def state_of(world: World, delivery_id: int) -> str:
    with world.database.snapshot() as db:
        return db.get_one(Delivery, delivery_id).state


# pynetdicom leaves sockets of failed associations to the garbage collector.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_a_node_is_asked_whether_it_answers(world: World, administrator: FlaskClient, post: Post):
    (node,) = world.settings.dicom.destinations
    assert post("/admin/peers/echo", node="pacs").status_code == 302
    assert "Asking…" in administrator.get("/admin/peers").text

    tasks.answer_queries(world.settings, world.database)
    assert "nothing listens there" in administrator.get("/admin/peers").text

    heard = replace(world.settings.dicom, port=node.port, ae_title="PACS", destinations=())
    post("/admin/peers/echo", node="pacs")
    reception = Reception(world.database, Store(world.settings.store_dir), min_free_bytes=0)
    with listening(heard, reception):
        tasks.answer_queries(world.settings, world.database)
    page = administrator.get("/admin/peers").text
    assert "Answered in" in page
    assert "nothing listens there" not in page
    assert post("/admin/peers/echo", node="nobody").status_code == 404


def test_rules_are_tried_on_a_past_study(world: World, administrator: FlaskClient, post: Post):
    study_id = ready(world)

    assert post("/admin/routing/trials", study=study_id).status_code == 302
    assert "Asking…" in administrator.get("/admin/routing").text
    tasks.answer_queries(world.settings, world.database)

    page = administrator.get("/admin/routing").text
    assert "<li>results: seg, sr to pacs when analysed</li>" in page
    with world.database.snapshot() as db:
        assert db.scalars(select(Delivery)).all() == []
    for number in ("99", "0", str(10**30), "", "x"):
        unknown = post("/admin/routing/trials", study=number)
        assert unknown.status_code == 400
        assert "There is no study of this number" in unknown.text


def test_a_study_that_has_not_ended_says_so(world: World, administrator: FlaskClient, post: Post):
    post("/admin/routing/trials", study=world.receive("1.2.3"))
    tasks.answer_queries(world.settings, world.database)

    assert "has no result that is up to date" in administrator.get("/admin/routing").text


def made_password(page: str) -> str:
    return page.partition("is <code>")[2].partition("</code>")[0]


def test_a_user_is_added_with_a_password_that_is_shown_once(
    world: World, administrator: FlaskClient, post: Post
):
    answered = post("/admin/users", name="anna", role="radiologist")

    assert "It must be changed at the first sign-in." in answered.text
    password = made_password(answered.text)
    assert sign_in(world.app().test_client(), name="anna", password=password).status_code == 302
    assert account(world, "anna").temporary
    page = administrator.get("/admin/users").text
    assert password not in page
    added = page.partition('id="add-title"')[2]
    assert re.findall("<option>(.*?)</option>", added) == [role.value for role in Role]
    twice = post("/admin/users", name="anna", role="radiologist")
    assert (twice.status_code, "there is a user anna already" in twice.text) == (400, True)
    assert post("/admin/users", name="b", role="king").status_code == 400


def test_a_user_is_unlocked_gets_a_password_a_role_and_is_shut_out(world: World, post: Post):
    for _ in range(accounts.MAX_FAILED_LOGINS):
        accounts.authenticate(world.database, name="reader", password="wrong password")
    assert accounts.authenticate(world.database, name="reader", password=PASSWORD) is None
    assert "Locked until" in post("/admin/users", name="", role="viewer").text

    assert post("/admin/users/1/unlock").status_code == 302
    assert accounts.authenticate(world.database, name="reader", password=PASSWORD) is not None
    password = made_password(post("/admin/users/1/password").text)
    assert accounts.authenticate(world.database, name="reader", password=PASSWORD) is None
    assert accounts.authenticate(world.database, name="reader", password=password) is not None
    assert post("/admin/users/1/role", role="viewer").status_code == 302
    assert account(world, "reader").role == "viewer"
    assert post("/admin/users/1/disable").status_code == 302
    assert accounts.authenticate(world.database, name="reader", password=password) is None
    assert post("/admin/users/1/enable").status_code == 302
    assert post("/admin/users/99/enable").status_code == 404
    assert accounts.authenticate(world.database, name="reader", password=password) is not None


@pytest.mark.parametrize(("path", "form"), [("disable", {}), ("role", {"role": "viewer"})])
def test_nobody_shuts_themselves_out(world: World, post: Post, path: str, form: dict[str, str]):
    answered = post(f"/admin/users/2/{path}", **form)

    assert answered.status_code == 400
    assert users.NOT_YOURSELF in answered.text
    chief = account(world, "chief")
    assert (chief.active, chief.role) == (True, "administrator")


def account(world: World, name: str) -> Account:
    with world.database.snapshot() as db:
        found = accounts.named(db, name)
    assert found is not None
    return found


def test_a_card_is_rendered_as_text(administrator: FlaskClient):
    page = administrator.get("/admin/models/lungs").text

    assert "<strong>Trained on CC BY-NC data" in page
    assert "<table>" in page
    assert administrator.get("/admin/models/nothing").status_code == 404
    assert administrator.get("/admin/models/..").status_code == 404


def test_the_digest_of_an_installed_model_is_the_one_that_results_name():
    for purpose in ("lungs", "lesions"):
        folder = shipped_weights() / purpose
        assert models._installed(folder).digest == open_bundle(folder).digest


def test_a_damaged_model_is_named_as_such(world: World, tmp_path: Path):
    weights = tmp_path / "weights"
    shutil.copytree(doctor.weights_dir(world.settings) / "lungs", weights / "lungs")
    (weights / "lungs" / models.CONFIG).write_text("{cut", encoding="utf-8")
    analysis = replace(world.settings.analysis, weights_dir=weights)
    client = replace(world, settings=replace(world.settings, analysis=analysis)).app().test_client()
    sign_in(client, name="chief")

    page = client.get("/admin/models").text

    assert "lungs: model card" in page
    assert '<p class="problem" role="alert">weights lungs' in page


def test_markup_in_a_card_stays_text():
    html = str(
        models._rendered("# A <script>x</script>\n\n| a |\n|--:|\n| <b> |\n\n[x](javascript:1)")
    )

    assert "<script>" not in html
    assert "<b>" not in html
    assert "href" not in html
    assert " style=" not in html
    assert '<td class="number">' in html
    assert html.startswith("<h2>")


def test_no_secret_of_the_settings_is_shown(world: World):
    dicom = {"organisation": "Clinic"}
    settings = Settings.parse(
        {
            "data_dir": str(world.settings.data_dir),
            "dicom": dicom,
            "broker": {"url": "redis://:hush@broker:6379/0"},
        }
    )
    assert settings.broker_url is not None

    assert configuration.without_password(settings.broker_url) == "redis://:•••@broker:6379/0"
    for url in (
        "postgresql+psycopg://chestct:hush@localhost/chestct",
        "postgresql+psycopg://chestct@localhost/chestct?password=hush",
    ):
        assert "hush" not in configuration.without_password(url)
    assert configuration.without_password("sqlite:////srv/a.db") == "sqlite:////srv/a.db"
    shown = {each.key: each for each in configuration._shown(settings, "dicom")}
    assert (shown["organisation"].value, shown["organisation"].changed) == ('"Clinic"', True)
    assert not shown["port"].changed


def test_the_storage_page_says_what_stays(world: World, administrator: FlaskClient):
    world.reject(world.receive("1.2.3"), "no chest", {})
    world.receive("1.2.4")

    page = administrator.get("/admin/storage").text

    assert "<td>1</td><td>Still arriving, waiting or being analysed</td>" in page
    assert "Never ([retention] keep_days)" in page


def test_studies_under_way_are_listed(world: World, administrator: FlaskClient):
    world.claim(world.receive("1.2.3"))

    page = administrator.get("/admin/queues").text

    assert f'<tr class="{State.ANALYSING}">' in page
    assert '<span class="badge">Analysing</span>' in page
