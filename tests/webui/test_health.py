from flask.testing import FlaskClient

from tests.webui.world import World


def test_health_answers_strangers(stranger: FlaskClient):
    answer = stranger.get("/healthz")

    assert (answer.status_code, answer.get_json()) == (200, {"status": "ok"})


def test_health_says_when_the_database_is_gone(world: World, stranger: FlaskClient):
    world.database.dispose()
    (world.settings.data_dir / "appliance.db").write_bytes(b"this is no database any more" * 400)
    for aside in world.settings.data_dir.glob("appliance.db-*"):
        aside.unlink()

    assert stranger.get("/healthz").status_code == 503
