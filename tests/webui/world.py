"""A small appliance for the pages: a database, a person, and studies in every state."""

import shutil
from dataclasses import dataclass, replace
from pathlib import Path
from types import MappingProxyType
from typing import Final

import numpy as np
import numpy.typing as npt
from flask import Flask
from flask.testing import FlaskClient

from appliance import accounts, lifecycle, studies
from appliance.config import Settings
from appliance.database import Database, open_database, upgrade
from appliance.lifecycle import Claim, FinishedAnalysis, State
from appliance.studies import PatientAttributes, SeriesAttributes, StudyAttributes
from pipelines import presentation
from pipelines.findings import LEFT_LUNG, RIGHT_LUNG, Analysis, LungMeasures, ModelRef, whole_folder
from pipelines.lesions import label_regions, measure_lesions
from pipelines.phantom import Phantom
from pipelines.severity import measure_burden
from pipelines.volume import CTVolume
from webui.app import create_app

NAME: Final = "reader"
PASSWORD: Final = "correct horse battery"
PATIENT: Final = PatientAttributes(
    patient_id="PHANTOM-0001", name="Phantom^Chest", birth_date="19700101", sex="O"
)
MODELS: Final = tuple(
    ModelRef(purpose, name, "1.0.0", f"{i:064x}")
    for i, (purpose, name) in enumerate(
        {"lungs": "U-Net", "lesions": "U-Net++", "screening": "ResNet-50"}.items()
    )
)
SMALLEST_ML: Final = 0.5
DIGESTS: Final = MappingProxyType({"one": "1" * 64, "other": "2" * 64})


@dataclass(frozen=True)
class World:
    """The appliance's own functions, arranged for tests."""

    settings: Settings
    database: Database

    @classmethod
    def copied(cls, template: Path, folder: Path) -> "World":
        """A world like the one made at `template`, in a fraction of the time."""
        shutil.copytree(template, folder)
        settings = Settings.parse({"data_dir": str(folder)})
        return cls(settings, open_database(settings))

    @classmethod
    def at(cls, folder: Path) -> "World":
        settings = Settings.parse({"data_dir": str(folder)})
        upgrade(settings)
        database = open_database(settings)
        with database.transaction() as db:
            accounts.add(db, NAME, password=PASSWORD, role=accounts.Role.RADIOLOGIST, actor="test")
        return cls(settings, database)

    def app(self) -> Flask:
        return create_app(self.settings)

    def receive(
        self,
        study_uid: str,
        *,
        series_uid: str = "series",
        instance: str = "1",
        digest: str = DIGESTS["one"],
        patient: PatientAttributes = PATIENT,
        study: StudyAttributes | None = None,
        series: SeriesAttributes | None = None,
        source_ae: str = "CT1",
        instances: int = 1,
    ) -> int:
        """The row id of the study that got one more instance, or as many as asked for."""
        received = studies.ReceivedInstance(
            study_uid=study_uid,
            series_uid=f"{study_uid}.{series_uid}",
            sop_instance_uid=f"{study_uid}.{series_uid}.{instance}",
            sop_class_uid="1.2.840.10008.5.1.4.1.1.2",
            transfer_syntax_uid="1.2.840.10008.1.2.1",
            digest=digest,
            size_bytes=1,
            source_ae=source_ae,
            patient=patient,
            study=study or StudyAttributes(description="Thorax", study_date="20260305"),
            series=series or SeriesAttributes(modality="CT", description="Lung 1.0"),
        )
        with self.database.transaction() as db:
            for number in range(instances):
                uid = f"{received.sop_instance_uid}.{number}"
                studies.record_instance(db, replace(received, sop_instance_uid=uid))
            return studies.named(db, study_uid)[0].id

    def queue(self, study_id: int) -> None:
        lifecycle.move(self.database, None, study_id, State.RECEIVING, State.QUEUED)

    def claim(self, study_id: int) -> Claim:
        self.queue(study_id)
        claim = lifecycle.claim(self.database, study_id, owner="test", lease_s=600)
        assert claim is not None
        return claim

    def finish(
        self, study_id: int, volume: CTVolume, analysis: Analysis, *, claim: Claim | None = None
    ) -> int:
        """Analyse a received study with a result made beforehand; the row id of the analysis."""
        claim = claim or self.claim(study_id)
        folder = Path("analyses") / f"{study_id}-{claim.revision}"
        save(analysis, volume, self.settings.data_dir / folder)
        finished = FinishedAnalysis(
            folder=str(folder),
            probability=analysis.probability,
            positive=analysis.positive,
            lesion_count=len(analysis.lesions),
            lesion_volume_ml=sum(lesion.volume_ml for lesion in analysis.lesions),
        )
        lifecycle.finish(self.database, claim, finished)
        with self.database.snapshot() as db:
            return studies.analyses_of(db, study_id)[-1].id

    def fail(self, claim: Claim, reason: str) -> None:
        lifecycle.fail(self.database, claim, reason=reason, transient=False)

    def reject(self, study_id: int, reason: str, series: dict[str, str]) -> None:
        """Refuse a received study, each of its series for a reason."""
        claim = self.claim(study_id)
        with self.database.transaction() as db:
            outcomes = [studies.SeriesOutcome(uid, "refused", why) for uid, why in series.items()]
            studies.record_series_outcomes(db, study_id, outcomes)
        lifecycle.reject(self.database, claim, reason=reason)


def save(analysis: Analysis, volume: CTVolume, folder: Path) -> None:
    """Write a result folder as the pipeline does."""
    with whole_folder(folder) as staging:
        analysis.write(staging, volume)
        presentation.write_viewer(volume, analysis, staging / "viewer")


def known(
    volume: CTVolume, *, lungs: npt.NDArray[np.uint8], lesions: npt.NDArray[np.bool_]
) -> Analysis:
    """The analysis of a volume whose lungs and lesions are known beforehand."""
    labels = label_regions(lesions, smallest=SMALLEST_ML / volume.voxel_ml)
    measured = measure_lesions(volume, labels, lungs)
    return Analysis(
        series_uid=volume.series_uid,
        shape=volume.shape,
        spacing=volume.spacing,
        affine=volume.affine,
        lungs=LungMeasures(
            left_ml=float((lungs == LEFT_LUNG).sum()) * volume.voxel_ml,
            right_ml=float((lungs == RIGHT_LUNG).sum()) * volume.voxel_ml,
        ),
        lesions=tuple(replace(lesion, probability=0.9 / lesion.id) for lesion in measured),
        probability=0.87,
        positive=True,
        threshold=0.5,
        models=MODELS,
        engine="test",
        timings_s={},
        warnings=(),
        refused_series=(),
        lung_mask=lungs,
        lesion_labels=labels,
        burden=measure_burden(lungs, labels, volume.voxel_ml),
    )


def truth(phantom: Phantom) -> Analysis:
    """The perfect analysis of a phantom: its own masks, measured."""
    return known(phantom.volume, lungs=phantom.lungs, lesions=phantom.lesions > 0)


def sign_in(client: FlaskClient, *, name: str = NAME, password: str = PASSWORD, target: str = "/"):
    """Sign in as a browser does, form token included."""
    page = client.get("/sign-in").get_data(as_text=True)
    token = page.split('name="csrf_token" value="')[1].split('"')[0]
    form = {"name": name, "password": password, "csrf_token": token}
    return client.post("/sign-in", query_string={"next": target}, data=form)
