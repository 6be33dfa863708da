"""The viewer's modules one by one, in the browser that runs them, against numpy."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from playwright.sync_api import Page

from pipelines.presentation import encode_slab
from tests.webui.browser import chromium, needs_chromium, serving
from tests.webui.world import World

pytestmark = needs_chromium


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Page]:
    """A page of the server, from which its modules can be imported."""
    app = World.at(tmp_path_factory.mktemp("modules") / "data").app()
    with serving(app) as address, chromium() as browser:
        opened = browser.new_page()
        opened.goto(f"{address}/sign-in")
        opened.evaluate("(path) => { window.path = path; }", f"{app.static_url_path}/viewer")
        yield opened


def run(page: Page, module: str, body: str, argument: Any = None) -> Any:
    """What a function body returns that has `module` and `argument` in scope."""
    function = (
        f"async (argument) => {{ const module = await import(`${{path}}/{module}.js`); {body} }}"
    )
    return page.evaluate(function, argument)


def test_a_slab_decodes_to_what_was_encoded(page: Page):
    random = np.random.default_rng(0)
    hu = random.integers(-32768, 32768, size=(2, 3, 5)).astype(np.int16)

    decoded = run(
        page,
        "slab",
        "return [...module.decodeSlab(new Uint8Array(argument.bytes), 5, 6)];",
        {"bytes": list(encode_slab(hu))},
    )

    assert decoded == hu.ravel().tolist()


def test_a_slab_of_the_wrong_length_is_refused(page: Page):
    body = "try { module.decodeSlab(new Uint8Array(7), 2, 2); } catch (e) { return String(e); }"

    assert "7 bytes, expected 8" in run(page, "slab", body)


@pytest.mark.parametrize("plane", ["axial", "coronal", "sagittal"])
def test_a_mask_is_cut_as_the_plane_shows_it(page: Page, plane: str):
    random = np.random.default_rng(1)
    nx, ny, nz = 20, 18, 12
    volume = np.zeros((nz, ny, nx), bool)
    box = (slice(2, 7), slice(3, 12), slice(5, 16))
    volume[box] = random.random((5, 9, 11)) > 0.5
    shown = {"axial": volume[4], "coronal": volume[::-1, 6], "sagittal": volume[::-1, :, 9]}[plane]

    section = run(
        page,
        "masks",
        """const { PLANES } = await import(`${path}/planes.js`);
        const plane = PLANES.find(({ name }) => name === argument.plane);
        const bits = new Uint8Array(argument.bits);
        const mask = new module.LesionMask(1, [5, 3, 2], [15, 11, 6], bits);
        const index = { axial: 4, coronal: 6, sagittal: 9 }[argument.plane];
        const section = mask.section(plane, [20, 18, 12], index);
        return { ...section, inside: [...section.inside] };""",
        {"plane": plane, "bits": np.packbits(volume[box], bitorder="little").tolist()},
    )

    drawn = np.zeros_like(shown)
    inside = np.array(section["inside"], bool).reshape(section["height"], section["width"])
    top, left = section["top"], section["left"]
    drawn[top : top + section["height"], left : left + section["width"]] = inside
    assert np.array_equal(drawn, shown)


@pytest.mark.parametrize("plane", ["axial", "coronal", "sagittal"])
def test_a_heat_map_is_cut_as_the_plane_shows_it(page: Page, plane: str):
    volume = np.zeros((12, 18, 20), np.uint8)
    box = (slice(2, 7), slice(3, 12), slice(5, 16))
    volume[box] = np.random.default_rng(2).integers(0, 256, (5, 9, 11))
    shown = {"axial": volume[4], "coronal": volume[::-1, 6], "sagittal": volume[::-1, :, 9]}[plane]

    section = run(
        page,
        "heat_layer",
        """const { PLANES } = await import(`${path}/planes.js`);
        const plane = PLANES.find(({ name }) => name === argument.plane);
        const map = new module.HeatMap([5, 3, 2], [15, 11, 6], new Uint8Array(argument.heat));
        const index = { axial: 4, coronal: 6, sagittal: 9 }[argument.plane];
        const section = map.section(plane, [20, 18, 12], index);
        const missed = map.section(plane, [20, 18, 12], 1);
        return { ...section, inside: [...section.inside], missed };""",
        {"plane": plane, "heat": volume[box].ravel().tolist()},
    )

    drawn = np.zeros_like(shown)
    inside = np.array(section["inside"], np.uint8).reshape(section["height"], section["width"])
    top, left = section["top"], section["left"]
    drawn[top : top + section["height"], left : left + section["width"]] = inside
    assert np.array_equal(drawn, shown)
    assert section["missed"] is None


def test_a_heat_map_of_the_wrong_length_is_refused(page: Page):
    body = """try { new module.HeatMap([0, 0, 0], [1, 1, 1], new Uint8Array(7)); }
        catch (e) { return String(e); }"""

    assert "7 bytes, expected 8" in run(page, "heat_layer", body)


@pytest.mark.parametrize("seed", range(5))
def test_outlines_enclose_exactly_the_mask(page: Page, seed: int):
    inside = np.random.default_rng(seed).random((9, 13)) > 0.4

    closed = run(
        page,
        "outlines",
        "return module.outlines({ left: 3, top: 2, width: 13, height: 9, inside: argument });",
        inside.astype(int).ravel().tolist(),
    )

    assert sum(map(enclosed, closed)) == inside.sum()
    corners = np.array([corner for outline in closed for corner in outline])
    assert corners.min(axis=0).tolist() == [3, 2]


def enclosed(outline: list[list[int]]) -> float:
    """The area inside corners (x, y), positive when they turn clockwise on the screen."""
    x, y = np.array(outline).T
    return float((x * np.roll(y, -1) - y * np.roll(x, -1)).sum() / 2)


def test_a_square_is_outlined_by_its_four_corners(page: Page):
    body = "return module.outlines({ left: 0, top: 0, width: 2, height: 2, inside: [1, 1, 1, 1] });"

    assert run(page, "outlines", body) == [[[0, 0], [2, 0], [2, 2], [0, 2]]]


def test_every_hu_has_the_grey_of_the_window(page: Page):
    body = """const table = new module.LookUpTable();
        table.show({ width: 400, centre: 40 });
        const hounsfield = [-32768, -161, -160, 40, 239, 240, 32767];
        return hounsfield.map((hu) => table.table[hu & 0xffff] & 255);"""

    assert run(page, "windowing", body) == [0, 0, 0, 127, 254, 255, 255]


def test_the_scale_bar_takes_the_longest_round_length_that_fits(page: Page):
    body = "return [250, 60, 49, 4, 0.2].map((room) => module.scaleBarMm(room));"

    assert run(page, "scale_bar", body) == [100, 50, 20, 2, 1]
