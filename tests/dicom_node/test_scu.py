"""Sending to a PACS that behaves, refuses, or goes away."""

from pathlib import Path

import pytest
from pydicom.dataset import Dataset
from pynetdicom import _config

from appliance import collection
from dicom_node import scu
from dicom_node.errors import AssociationError, SendError
from tests.support.instances import Names, as_file, ct_instance, encoded
from tests.support.pacs import HOST, free_port, pacs


def to(port: int, called_ae: str = "PACS") -> scu.Destination:
    return scu.Destination(host=HOST, port=port, called_ae=called_ae, calling_ae="CHESTCT")


@pytest.fixture
def slices():
    names = Names.fresh()
    return [ct_instance(names) for _ in range(6)]


@pytest.fixture
def instances(slices: list[Dataset], tmp_path: Path):
    for number, ds in enumerate(slices):
        as_file(ds, tmp_path / f"{number}.dcm")
    return collection.collect(tmp_path, scratch=tmp_path).instances


@pytest.mark.parametrize("associations", [1, 4, 9])
def test_everything_arrives_as_it_is(
    slices: list[Dataset], instances: tuple[collection.InstanceFile, ...], associations: int
):
    reported = []
    with pacs() as running:
        sent = scu.send(
            instances, to(running.port), associations=associations, report=reported.append
        )

    assert {result.problem for result in sent} == {""}
    assert sorted(map(str, reported)) == sorted(map(str, sent))
    assert running.received == {ds.SOPInstanceUID: encoded(ds) for ds in slices}


def test_what_is_refused_is_told_with_the_status(
    slices: list[Dataset], instances: tuple[collection.InstanceFile, ...]
):
    full = slices[2].SOPInstanceUID
    with pacs(answer=lambda uid: 0xA700 if uid == full else 0) as running:
        sent = scu.send(instances, to(running.port))

    problems = {result.instance.sop_instance_uid: result.problem for result in sent}
    assert problems.pop(full) == "0xA700 Refused: Out of Resources"
    assert set(problems.values()) == {""}


def test_a_warning_is_no_failure(instances: tuple[collection.InstanceFile, ...]):
    with pacs(answer=lambda _uid: 0xB000) as running:
        assert {sent.problem for sent in scu.send(instances, to(running.port))} == {""}


def test_a_class_that_the_peer_does_not_take_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(_config, "UNRESTRICTED_STORAGE_SERVICE", False)
    as_file(ct_instance(Names.fresh(), SOPClassUID="1.2.3.4"), tmp_path / "a.dcm")
    as_file(ct_instance(Names.fresh()), tmp_path / "b.dcm")
    instances = collection.collect(tmp_path, scratch=tmp_path).instances

    with pacs() as running:
        private, ct = scu.send(instances, to(running.port))

    assert "takes no such SOP class" in private.problem
    assert ct.problem == ""


def test_what_a_peer_breaks_off_for_stays_behind_alone(
    instances: tuple[collection.InstanceFile, ...],
):
    def answer(uid: str) -> int:
        if uid == instances[2].sop_instance_uid:
            running.abort_all()
        return 0

    with pacs(answer=answer) as running:
        sent = scu.send(instances, to(running.port))

    problems = [result.problem for result in sent]
    assert problems.pop(2) == "no answer: the association was lost"
    assert set(problems) == {""}


def test_after_a_loss_a_peer_is_not_taken_for_one_that_takes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(_config, "UNRESTRICTED_STORAGE_SERVICE", False)
    as_file(ct_instance(Names.fresh()), tmp_path / "a.dcm")
    as_file(ct_instance(Names.fresh(), SOPClassUID="1.2.3.4"), tmp_path / "b.dcm")
    instances = collection.collect(tmp_path, scratch=tmp_path).instances
    instances = tuple(sorted(instances, key=lambda one: one.sop_class_uid == "1.2.3.4"))

    def lose(_uid: str) -> int:
        running.abort_all()
        return 0

    with pacs(answer=lose) as running:
        ct, private = scu.send(instances, to(running.port))

    assert ct.problem == "no answer: the association was lost"
    assert "takes no such SOP class" in private.problem


def test_a_refusal_that_follows_a_loss_is_not_final():
    for lost in (False, True):
        with pytest.raises(AssociationError) as raised, scu._again(lost):
            raise AssociationError("rejected", retriable=False)

        assert raised.value.retriable is lost


def test_a_rejection_is_told_in_the_peers_words(instances: tuple[collection.InstanceFile, ...]):
    with pacs() as running, pytest.raises(SendError, match=r"OTHER at .* Called AE title"):
        scu.send(instances, to(running.port, "OTHER"))


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_a_peer_that_is_not_there_is_told(
    instances: tuple[collection.InstanceFile, ...],
):  # pynetdicom leaves its socket open
    with pytest.raises(SendError, match="nothing listens there"):
        scu.send(instances, to(free_port()))


def test_many_contexts_take_several_associations(tmp_path: Path):
    names = Names.fresh()
    for number in range(150):
        ds = ct_instance(names, SOPClassUID=f"1.2.3.{number}")
        as_file(ds, tmp_path / f"{number:03}.dcm")
    instances = collection.collect(tmp_path, scratch=tmp_path).instances

    batches = list(scu.batches(instances))

    assert [len(batch) for batch in batches] == [128, 22]
    assert [found for batch in batches for found in batch] == list(instances)


def test_nothing_to_send_is_sent(tmp_path: Path):
    assert scu.send((), to(free_port())) == []
