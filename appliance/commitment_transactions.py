"""What destinations commit themselves to keep (PS3.4 annex J): what was asked and what came back.

A request has a Transaction UID of its own, in the database before it goes out. A report counts
whenever it comes, by whatever association, also after a later request.
"""

from collections.abc import Collection, Mapping, Sequence
from datetime import timedelta
from typing import Final
from uuid import uuid4

from sqlalchemy import func, select, update

from appliance.database import Database, utc_now
from appliance.deliveries import DeliveryState, ObjectState, Order
from appliance.tables import CommitmentTransaction, DeliveredObject, Delivery

REPORTABLE: Final = (DeliveryState.SENT, DeliveryState.FAILED)
"""What a full report ends: some archives report long after they were given up."""
NOT_KEPT: Final = "taken, but not kept"


def begin(database: Database, order: Order) -> str:
    """Note that a commitment is about to be asked for; returns the new Transaction UID."""
    transaction_uid = f"2.25.{uuid4().int}"  # PS3.5 B.2
    with database.transaction() as db:
        db.add(
            CommitmentTransaction(
                delivery_id=order.id, transaction_uid=transaction_uid, asked_at=utc_now()
            )
        )
    return transaction_uid


def asked(database: Database, order: Order) -> int:
    """How often a commitment to this delivery was asked for since it was queued or retried."""
    rows = select(func.count()).where(
        CommitmentTransaction.delivery_id == order.id,
        CommitmentTransaction.asked_at >= order.queued_at,
    )
    with database.snapshot() as db:
        return db.scalar(rows) or 0


def await_report(database: Database, order: Order, *, wait_s: float) -> None:
    """Leave a delivery to the report on it, and look after it again if none comes in time."""
    own = (Delivery.id == order.id, Delivery.attempts == order.attempt)
    again = utc_now() + timedelta(seconds=wait_s)
    with database.transaction() as db:
        db.execute(
            update(Delivery)
            .where(*own, Delivery.state == DeliveryState.SENT)
            .values(next_try_at=again, failures=0, last_problem=None)
        )
        db.execute(update(Delivery).where(*own).values(lease_until=None))


def report(
    database: Database,
    transaction_uid: str,
    *,
    committed: Collection[str],
    failed: Mapping[str, str],
    retry_s: float,
) -> bool:
    """Take a destination's report; false if no such transaction was ever asked for.

    What it does not keep is sent again, after `retry_s`; what it does not name is asked for again.

    Args:
        database: where the request is.
        transaction_uid: of the request.
        committed: the SOP Instance UIDs it commits itself to.
        failed: those it does not, each with the reason.
        retry_s: seconds.
    """
    request = select(CommitmentTransaction).where(
        CommitmentTransaction.transaction_uid == transaction_uid
    )
    with database.transaction() as db:
        found = db.scalars(request).one_or_none()
        if found is None:
            return False
        delivery = db.scalars(
            select(Delivery).where(Delivery.id == found.delivery_id).with_for_update()
        ).one()
        objects = db.scalars(
            select(DeliveredObject).where(DeliveredObject.delivery_id == delivery.id)
        ).all()
        found.reported_at = utc_now()
        _mark(objects, committed, failed)
        states = {each.state for each in objects}
        if delivery.state in REPORTABLE and states == {ObjectState.COMMITTED}:
            delivery.state = DeliveryState.COMMITTED
            delivery.next_try_at = delivery.last_problem = None
        elif delivery.state == DeliveryState.SENT and ObjectState.WAITING in states:
            delivery.state = DeliveryState.WAITING
            delivery.next_try_at = utc_now() + timedelta(seconds=retry_s)
            delivery.last_problem = NOT_KEPT
        return True


def _mark(
    objects: Sequence[DeliveredObject], committed: Collection[str], failed: Mapping[str, str]
) -> None:
    for each in objects:
        if each.state != ObjectState.SENT:
            continue
        if each.sop_instance_uid in failed:  # whatever else is said of it
            each.state = ObjectState.WAITING
            each.problem = f"{NOT_KEPT}: {failed[each.sop_instance_uid]}"
        elif each.sop_instance_uid in committed:
            each.state, each.problem = ObjectState.COMMITTED, None
        else:
            continue
        each.answered_at = utc_now()
