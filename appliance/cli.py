"""The command `appliance`: its own commands, and by name those of the packages above the core."""

import getpass
import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib import metadata
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Final

import click

from appliance.config import GIB, ROLES, SETTINGS_VARIABLE, Settings, reference
from appliance.errors import ApplianceError, ConfigError, InvalidMoveError

if TYPE_CHECKING:
    from appliance.database import Database

COMMANDS: Final = "appliance.commands"
"""The entry-point group in which the other packages name their commands."""


class Appliance(click.Group):
    """A group that also finds the commands of other packages, each loaded only when used."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return sorted({*super().list_commands(ctx), *(entry.name for entry in _mounted())})

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if (own := super().get_command(ctx, cmd_name)) is not None:
            return own
        for entry in _mounted():
            if entry.name == cmd_name:
                return _load(entry)
        return None

    def invoke(self, ctx: click.Context) -> object:
        try:
            return super().invoke(ctx)
        except ApplianceError as error:
            raise click.ClickException(str(error)) from error


def _mounted() -> metadata.EntryPoints:
    return metadata.entry_points(group=COMMANDS)


def _load(entry: metadata.EntryPoint) -> click.Command:
    try:
        command: click.Command = entry.load()
    except ImportError as error:
        return _broken(entry.name, str(error))
    return command


def _broken(name: str, why: str) -> click.Command:
    """A command that says why it cannot be had, so that the others still can."""

    def explain() -> None:
        raise click.ClickException(f"`appliance {name}` cannot be loaded: {why}")

    return click.Command(name, callback=explain, help=f"(cannot be loaded: {why})")


@click.group(cls=Appliance, context_settings={"help_option_names": ["-h", "--help"]})
@click.option(
    "--settings",
    "settings_file",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help=f"Settings file; else the one that ${SETTINGS_VARIABLE} names.",
)
@click.version_option(package_name="chest-ct-appliance")
def main(settings_file: Path | None) -> None:
    """On-premise chest CT: receives over DICOM, analyses, shows. Not for primary diagnosis."""
    if settings_file is not None:
        os.environ[SETTINGS_VARIABLE] = str(settings_file.absolute())


@main.command()
@click.option(
    "--logs",
    type=click.Path(file_okay=False, path_type=Path),
    help="Folder for one log file per process; else all write to this terminal.",
)
def serve(logs: Path | None) -> None:
    """Run the whole appliance until it is stopped."""
    from appliance import logs as logging
    from appliance import web_certificate
    from appliance.supervisor import Supervisor

    settings = Settings.load()
    logging.configure("supervisor")
    click.echo(
        f"Starting the appliance in {settings.data_dir}: pages at {settings.web.address},"
        f" DICOM node {settings.dicom.ae_title} on port {settings.dicom.port}. Ctrl-C ends it."
    )
    certificate = web_certificate.prepare(settings)
    if certificate is not None and certificate.is_own:
        click.echo(
            "The certificate is of our own making: browsers warn, and show this SHA-256 fingerprint"
            f" if it is really this machine: {certificate.fingerprint}"
        )
    Supervisor(settings, logs=logs).run()


@main.command()
def status() -> None:
    """Show what runs, what waits, what failed."""
    from appliance import status as tables
    from appliance.supervisor import read_report

    settings = Settings.load()
    report = read_report(settings)
    for line in (*tables.processes(report), *tables.security(settings.dicom)):
        click.echo(line)
    if report is None:
        click.echo(f"Looked in {settings.data_dir}; for another: appliance --settings FILE status")
    try:
        with _database(settings) as database:
            for line in tables.work(database):
                click.echo(line)
    except ConfigError as error:
        click.echo(str(error))
    if report is None:
        sys.exit(3)  # as service managers say "not running"


@main.command()
def doctor() -> None:
    """Check ports, disk, broker, database, weights and engine; say what to mend."""
    from appliance.doctor import examine

    ill = 0
    for finding in examine(Settings.load()):
        click.echo(f"{'ok  ' if finding.well else 'BAD '}  {finding.subject}: {finding.text}")
        if not finding.well:
            click.echo(f"        {finding.mend}")
            ill += 1
    click.echo("All is well." if not ill else f"{ill} to mend.")
    sys.exit(1 if ill else 0)


@main.command()
def settings() -> None:
    """Print every setting with its default and meaning, as a file to start from."""
    click.echo(reference(), nl=False)


@main.command()
@click.option(
    "--study",
    type=click.Path(exists=True, path_type=Path),
    help="Folder of DICOM files to send; else a synthetic chest is made and sent.",
)
@click.option("--once", is_flag=True, envvar="ONCE", help="Stop after the result.")
@click.option(
    "--data-dir",
    type=click.Path(file_okay=False, path_type=Path),
    default=Path(".demo"),
    show_default=True,
    help="Where the demo keeps everything.",
)
@click.option(
    "--timeout", "timeout_s", type=float, default=3600.0, show_default=True, help="Seconds to wait."
)
def demo(study: Path | None, once: bool, data_dir: Path, timeout_s: float) -> None:  # noqa: FBT001
    """Start everything, send a study over DICOM, print the result and stay up."""
    from appliance.demo import run

    sys.exit(run(data_dir.absolute(), study=study, once=once, timeout_s=timeout_s))


@main.command("import")
@click.argument("source", type=click.Path(path_type=Path))
def import_(source: Path) -> None:
    """Take in SOURCE: a folder or zip file of DICOM files, or a CD; run again to go on."""
    from appliance import collection, importing, logs
    from appliance.reception import Reception
    from appliance.store import Store
    from appliance.studies import Recorded

    settings = Settings.load()
    logs.configure("import")
    with _database(settings) as database, TemporaryDirectory(prefix="import-") as scratch:
        reception = Reception(
            database, Store(settings.store_dir), min_free_bytes=settings.dicom.min_free_bytes
        )
        collected = collection.collect(source, scratch=Path(scratch))
        if not collected.instances and not collected.refused:
            raise ApplianceError(f"{source} holds no DICOM instance")
        with click.progressbar(length=len(collected.instances), label="importing") as bar:
            imported = importing.take(
                collected, reception, database, actor=_actor(), report=lambda: bar.update(1)
            )
    click.echo(
        f"{imported.taken[Recorded.NEW]} new, {imported.taken[Recorded.DUPLICATE]} there already,"
        f" {imported.taken[Recorded.CONFLICT]} kept aside as conflicts,"
        f" {len(imported.refused)} refused,"
        f" {len(collected.skipped) - len(collected.refused)} other files"
    )
    _tell((*imported.refused, *imported.mended))
    if imported.refused:
        sys.exit(1)


@main.command()
@click.argument("source", type=click.Path(path_type=Path))
@click.option(
    "--out",
    type=click.Path(file_okay=False, path_type=Path),
    required=True,
    help="New folder for what may leave.",
)
def deidentify(source: Path, out: Path) -> None:
    """Write SOURCE, a folder, zip file or CD of DICOM images, without its patients."""
    from appliance import collection, exporting, logs
    from appliance.config import deidentification_key

    logs.configure("deidentify")
    key = deidentification_key(Settings.load())
    with TemporaryDirectory(prefix="deidentify-") as scratch:
        collected = collection.collect(source, scratch=Path(scratch))
        with click.progressbar(length=len(collected.instances), label="de-identifying") as bar:
            exported = exporting.export(collected.instances, out, key, report=lambda: bar.update(1))
    left_out = (*collected.refused, *exported.left_out)
    _tell(left_out)
    if not exported.written:
        raise ApplianceError(f"nothing of {source} may leave; nothing was written")
    click.echo(f"{exported.written} images written to {out}, {len(left_out)} files left out")


def _tell(problems: Sequence[tuple[Path, str]]) -> None:
    """Print reasons, each with how many files it befell and one of them."""
    by_reason: dict[str, list[Path]] = {}
    for path, reason in problems:
        by_reason.setdefault(reason, []).append(path)
    for reason, paths in by_reason.items():
        others = f" and {len(paths) - 1} more" if len(paths) > 1 else ""
        click.echo(f"{paths[0]}{others}: {reason}", err=True)


@main.group()
def database() -> None:
    """Look after the database."""


@database.command("upgrade")
def database_upgrade() -> None:
    """Bring the tables to this release."""
    from appliance.database import upgrade

    upgrade(Settings.load())
    click.echo("The database has the tables of this release.")


@main.group()
def study() -> None:
    """Look after single studies."""


@study.command("requeue")
@click.argument("study_id", metavar="ID", type=int)
def study_requeue(study_id: int) -> None:
    """Analyse a FAILED or REJECTED study again; ID is its number in `appliance status`."""
    from appliance import lifecycle, queue

    settings = Settings.load()
    doorbell = queue.Queue(queue.make_app(settings))
    with _database(settings) as database:
        try:
            lifecycle.requeue(database, study_id, actor=_actor(), doorbell=doorbell)
        except InvalidMoveError as error:
            if error.source not in lifecycle.NEXT:
                raise ApplianceError(f"there is no study {study_id}") from error
            raise ApplianceError(
                f"study {study_id} is {error.source}: a FAILED or REJECTED one can be tried again"
            ) from error
    click.echo(f"Study {study_id} waits for a worker.")


@study.command("remove")
@click.argument("study_id", metavar="ID", type=int)
@click.confirmation_option(prompt="Remove its images and results from this appliance for good?")
def study_remove(study_id: int) -> None:
    """Remove a study with its images and results; ID is its number in `appliance status`."""
    from appliance import retention

    settings = Settings.load()
    with _database(settings) as database:
        if not retention.remove(database, settings, study_id, actor=_actor()):
            raise ApplianceError(
                f"study {study_id} is not there, or still arriving or being analysed"
            )
    click.echo(f"Study {study_id} is removed; the audit says so.")


@main.command()
def retention() -> None:
    """Show which studies may be removed by now, and what keeps the others."""
    from appliance import retention as rules

    settings = Settings.load()
    chosen = settings.retention
    age = f"after {chosen.keep_days} days" if chosen.keep_days else "at no age"
    disk = f"below {chosen.free_bytes / GIB:.1f} GiB" if chosen.free_bytes else "never"
    click.echo(f"Studies are removed {age}, and the oldest when the disk has little room: {disk}.")
    with _database(settings) as database:
        counts = rules.held(database, settings)
    click.echo(f"{counts.pop('')} studies may go when their time comes.")
    for reason, count in counts.items():
        if count:
            click.echo(f"{count} stay: {reason}")


@study.command("urgent")
@click.argument("study_id", metavar="ID", type=int)
@click.option("--off", is_flag=True, help="It is not urgent after all.")
def study_urgent(study_id: int, *, off: bool) -> None:
    """Let a study overtake those that wait; ID is its number in `appliance status`."""
    from appliance import priority

    wanted = priority.Priority.ROUTINE if off else priority.Priority.URGENT
    with _database(Settings.load()) as database, database.transaction() as db:
        priority.mark(db, study_id, wanted, actor=_actor(), who=getpass.getuser())
    click.echo(f"Study {study_id} is {wanted.lower()}.")


@main.group()
def audit() -> None:
    """Look after the record of who did what."""


@audit.command("verify")
def audit_verify() -> None:
    """Check that no entry was changed or removed; say where the chain ends."""
    from appliance import audit as chain

    with _database(Settings.load()) as database, database.snapshot() as db:
        broken = chain.verify(db)
        end = chain.end(db)
    if broken is not None:
        raise ApplianceError(
            f"The audit was changed at entry {broken}, or the one before it is missing."
            " Keep a copy of the database, and restore it from a backup."
        )
    click.echo(f"The audit is whole: {end.entries} entries, the last of them {end.id}.")
    click.echo(f"Its hash is {end.hash}. Write it down elsewhere: a cut-off end shows by it alone.")


KEPT: Final = click.option(
    "--keep-password",
    is_flag=True,
    help="It need not be changed at the first sign-in, as for a program.",
)


@main.group()
def user() -> None:
    """Look after the people who may sign in."""


@user.command("add")
@click.argument("name")
@click.option("--role", type=click.Choice(ROLES), default="radiologist", show_default=True)
@click.option("--password-stdin", is_flag=True, help="Read the password from the standard input.")
@KEPT
def user_add(name: str, *, role: str, password_stdin: bool, keep_password: bool) -> None:
    """Add a user; without --password-stdin a password is made and shown once."""
    from appliance import accounts
    from appliance.database import upgrade

    settings = Settings.load()
    password, made = _password(stdin=password_stdin)
    upgrade(settings)  # the first user is often added before the first start
    with _database(settings) as database, database.transaction() as db:
        accounts.add(
            db,
            name,
            password=password,
            role=accounts.Role(role),
            actor=_actor(),
            temporary=not keep_password,
        )
    click.echo(
        f"Added {name} as {role} to the appliance in {settings.data_dir}."
        + (f" Password: {password}" if made else "")
    )


@user.command("password")
@click.argument("name")
@click.option("--password-stdin", is_flag=True, help="Read the password from the standard input.")
@KEPT
def user_password(name: str, *, password_stdin: bool, keep_password: bool) -> None:
    """Give a user a new password and lift a lock."""
    from appliance import accounts

    password, made = _password(stdin=password_stdin)
    with _database(Settings.load()) as database, database.transaction() as db:
        accounts.set_password(
            db, name, password=password, actor=_actor(), temporary=not keep_password
        )
    click.echo(f"Changed the password of {name}." + (f" Password: {password}" if made else ""))


@user.command("disable")
@click.argument("name")
def user_disable(name: str) -> None:
    """Shut a user out."""
    from appliance import accounts

    with _database(Settings.load()) as database, database.transaction() as db:
        accounts.disable(db, name, actor=_actor())
    click.echo(f"{name} cannot sign in any more.")


@user.command("enable")
@click.argument("name")
def user_enable(name: str) -> None:
    """Let a disabled user in again."""
    from appliance import accounts

    with _database(Settings.load()) as database, database.transaction() as db:
        accounts.enable(db, name, actor=_actor())
    click.echo(f"{name} can sign in again.")


@user.command("unlock")
@click.argument("name")
def user_unlock(name: str) -> None:
    """Lift the lock that too many wrong passwords brought."""
    from appliance import accounts

    with _database(Settings.load()) as database, database.transaction() as db:
        accounts.unlock(db, name, actor=_actor())
    click.echo(f"{name} can try to sign in at once.")


@user.command("role")
@click.argument("name")
@click.argument("role", type=click.Choice(ROLES))
def user_role(name: str, role: str) -> None:
    """Give a user another role."""
    from appliance import accounts

    with _database(Settings.load()) as database, database.transaction() as db:
        accounts.set_role(db, name, accounts.Role(role), actor=_actor())
    click.echo(f"{name} is {role} now.")


@user.command("list")
def user_list() -> None:
    """List the users."""
    from appliance import accounts

    with _database(Settings.load()) as database, database.snapshot() as db:
        for account in accounts.everyone(db):
            click.echo(f"{account.name}  {account.role}{'' if account.active else '  disabled'}")


@contextmanager
def _database(settings: Settings) -> "Iterator[Database]":
    """The database, closed afterwards; one without this release's tables is refused."""
    from appliance.database import open_database, require_tables

    require_tables(settings)
    opened = open_database(settings)
    try:
        yield opened
    finally:
        opened.dispose()


def _password(*, stdin: bool) -> tuple[str, bool]:
    """A password, and whether it was made here and must be shown."""
    from appliance.accounts import new_password

    if stdin:
        return sys.stdin.readline().rstrip("\n"), False
    return new_password(), True


def _actor() -> str:
    """Who the audit says did it: the person at this machine's command line."""
    return f"command line: {getpass.getuser()}"


if __name__ == "__main__":
    main(prog_name="appliance")
