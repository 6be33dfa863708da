from appliance import accounts, preferences
from appliance.accounts import Role
from appliance.database import Database


def test_a_value_is_kept_for_one_person_until_it_is_replaced_or_dropped(database: Database):
    with database.transaction() as db:
        ann, eve = (
            accounts.add(db, name, password="longer than needed 1", role=Role.VIEWER, actor="t")
            for name in ("ann", "eve")
        )
        preferences.put(db, ann, "window", {"width": 400})
    with database.transaction() as db:
        preferences.put(db, ann, "window", [1, "two"])
        preferences.put(db, ann, "other", "kept")

    with database.snapshot() as db:
        assert preferences.get(db, ann, "window") == [1, "two"]
        assert preferences.get(db, eve, "window") is None

    with database.transaction() as db:
        preferences.put(db, ann, "window", None)
    with database.snapshot() as db:
        assert preferences.get(db, ann, "window") is None
        assert preferences.get(db, ann, "other") == "kept"
