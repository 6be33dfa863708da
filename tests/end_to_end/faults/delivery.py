"""A PACS that fails while results go back to it: F11 of the figures."""

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Final

from sqlalchemy import func, select

from appliance.deliveries import DeliveryState
from appliance.tables import DeliveredObject, Delivery, Study
from tests.end_to_end.faults.box import SLICES, Box, Row, Sending, until
from tests.end_to_end.faults.pacs import Fault

AT_ONCE: Final = 4
FAULTS_EACH: Final = 3
DOWN: Final = "down"


def break_the_pacs(box: Box, row: Row) -> None:
    """F11: the PACS is down when results are due, then fails in other ways, then takes them."""
    with _watched(box, row):
        while row.left:
            befell = box.pacs.befell.copy()
            box.pacs.down()
            studies = min(AT_ONCE, -(-row.left // FAULTS_EACH))
            sendings = [box.new_study() for _ in range(studies)]
            row.sendings += sendings
            for sending in sendings:
                box.send(sending)
            for sending in sendings:
                until("the PACS is missed", partial(_failed, box, sending))
            row.did(DOWN)
            time.sleep(row.chance.uniform(0, 5))
            kinds = row.chance.choices(list(Fault), k=min(row.left, FAULTS_EACH * len(sendings)))
            box.pacs.planned.extend((kind, row.chance.randint(1, SLICES)) for kind in kinds)
            box.pacs.up()
            box.settle(sendings)
            # What was left of a delivery may be less than the object that was to fail.
            box.pacs.planned.clear()
            for kind in (box.pacs.befell - befell).elements():
                row.did(kind)


def _failed(box: Box, sending: Sending) -> bool:
    with box.database.snapshot() as db:
        failures = db.scalar(
            select(func.sum(Delivery.failures))
            .join(Study, Study.id == Delivery.study_id)
            .where(Study.study_uid == sending.study_uid)
        )
    return bool(failures)


@contextmanager
def _watched(box: Box, row: Row) -> Iterator[None]:
    """See to it, as long as the block runs, that what is said to be sent is at the PACS."""
    over = threading.Event()

    def watch() -> None:
        while not over.wait(0.05):
            if too_early := _said_but_not_there(box):
                row.faults.append(f"{too_early} objects were said to be sent and were not there")
                return

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        yield
    finally:
        over.set()
        watcher.join()


def _said_but_not_there(box: Box) -> int:
    sent = (
        select(DeliveredObject.sop_instance_uid)
        .join(Delivery, Delivery.id == DeliveredObject.delivery_id)
        .where(Delivery.state == DeliveryState.SENT)
        .order_by(Delivery.id.desc())
        .limit(1000)
    )
    with box.database.snapshot() as db:
        return sum(uid not in box.pacs.kept for uid in db.scalars(sent))
