"""The command `appliance-vendor`: the vendor's repository of signed updates."""

import os
import sys
from pathlib import Path
from typing import Final

import click

from updater.offers import Channel
from updater.vendor import bundle
from updater.vendor.errors import VendorError
from updater.vendor.keys import Keyring
from updater.vendor.repository import LIFETIME, VendorRepository

PASSPHRASE_VARIABLE: Final = "APPLIANCE_VENDOR_PASSPHRASE"  # noqa: S105 - its name
"""The passphrase of all keys at hand, for what runs without a person."""


class Vendor(click.Group):
    """A group whose errors are sentences."""

    def invoke(self, ctx: click.Context) -> object:
        try:
            return super().invoke(ctx)
        except VendorError as error:
            raise click.ClickException(str(error)) from error
        except OSError as error:
            place = "" if error.filename is None else f"{error.filename}: "
            raise click.ClickException(f"{place}{error.strerror}.") from error


@click.group(cls=Vendor)
@click.option(
    "--repository",
    default="repository",
    show_default=True,
    type=click.Path(path_type=Path),
    help="The folder to be served, or copied to a disk.",
)
@click.option(
    "--keys",
    multiple=True,
    default=["keys"],
    show_default=True,
    type=click.Path(path_type=Path),
    help="A folder of private keys; may be given again. New keys go into the first.",
)
@click.pass_context
def main(ctx: click.Context, repository: Path, keys: tuple[Path, ...]) -> None:
    """Sign and publish what appliances update themselves from.

    The passphrase of each key is asked for, unless APPLIANCE_VENDOR_PASSPHRASE has that of all.
    """
    ctx.obj = VendorRepository(repository, Keyring(keys, _passphrase))


@main.command()
@click.pass_obj
def init(repository: VendorRepository) -> None:
    """Make the keys and an empty repository.

    Then put each root key where nobody has two of them, the keys `targets`, `models` and `software`
    where only releases are signed, and 1.root.json into `updater/root.json` of the release.
    """
    repository.initialise()
    click.echo("Two of the three root keys must sign each new root: keep them apart, and offline.")


@main.command()
@click.argument("weights", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.option("--minimum-software", required=True, help="The oldest release that can run it.")
@click.option(
    "--channel",
    type=click.Choice([channel.value for channel in Channel]),
    default=Channel.CANDIDATE.value,
    show_default=True,
)
@click.option(
    "--share", default=100, show_default=True, type=click.IntRange(1, 100), help="Percent of sites."
)
@click.pass_obj
def publish(
    repository: VendorRepository, weights: Path, minimum_software: str, channel: str, share: int
) -> None:
    """Offer the model in WEIGHTS, such as weights/lungs; again for a wider channel or share."""
    made = bundle.build(weights, minimum_software)
    offer = repository.publish(made, channel=Channel(channel), share_percent=share)
    click.echo(f"{offer.path}: {len(made.content)} bytes for {share} % of {channel}")


@main.command()
@click.argument("purpose")
@click.argument("version")
@click.option("--reason", required=True, help="Told to the administrators of the sites.")
@click.pass_obj
def recall(repository: VendorRepository, purpose: str, version: str, reason: str) -> None:
    """Tell every site to run VERSION no more; there is no way back."""
    repository.recall(purpose, version, reason)


@main.command()
@click.argument("role", type=click.Choice(list(LIFETIME)))
@click.pass_obj
def rotate(repository: VendorRepository, role: str) -> None:
    """Give ROLE new keys, as after one was lost or stolen."""
    for path in repository.rotate(role):
        click.echo(f"signs no more, destroy it: {path}")


@main.command()
@click.argument("roles", nargs=-1, type=click.Choice(list(LIFETIME)))
@click.pass_obj
def refresh(repository: VendorRepository, roles: tuple[str, ...]) -> None:
    """Sign anew before it expires: snapshot and timestamp, every day, or the ROLES named."""
    if roles:
        repository.refresh(roles)
    else:
        repository.refresh()


@main.command()
@click.pass_obj
def status(repository: VendorRepository) -> None:
    """Say what is published and what expires when; exit status 1 if something does soon."""
    for offer in repository.offers():
        recalled = f"  recalled: {offer.recalled}" if offer.recalled else ""
        share = f"{offer.share_percent} % of {offer.channel}"
        click.echo(f"{offer.purpose:12} {offer.version:10} {share}{recalled}")
    roles = repository.status()
    for role in roles:
        soon = "  SOON: appliance-vendor refresh " + role.role if role.warning else ""
        click.echo(
            f"{role.role:12} {role.version:<10} until {role.expires:%Y-%m-%d}, "
            f"{role.left.days} days{soon}"
        )
    if any(role.warning for role in roles):
        sys.exit(1)


def _passphrase(name: str, *, new: bool) -> str:
    if (passphrase := os.environ.get(PASSPHRASE_VARIABLE)) is not None:
        return passphrase
    asked = f"New passphrase for {name}" if new else f"Passphrase of {name}"
    answer: str = click.prompt(asked, hide_input=True, confirmation_prompt=new)
    return answer
