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


VOLUME_OF = """const { Volume } = await import(`${path}/volume.js`);
    const { PLANES } = await import(`${path}/planes.js`);
    const [nz, ny, nx] = argument.shape;
    const volume = new Volume([nx, ny, nz], argument.spacing ?? [1, 1, 1]);
    volume.put(0, nz, new Int16Array(argument.hu));
    for (const z of argument.missing ?? []) volume.arrived[z] = 0;
    const plane = PLANES.find(({ name }) => name === argument.plane);"""


def volume_argument(hu: np.ndarray, **more: Any) -> dict[str, Any]:
    return {"shape": hu.shape, "hu": hu.ravel().tolist(), **more}


@pytest.mark.parametrize("mode", ["mip", "minip", "average"])
@pytest.mark.parametrize("plane", ["axial", "coronal", "sagittal"])
def test_a_thick_slab_is_the_brightest_darkest_or_mean_of_its_slices(
    page: Page, plane: str, mode: str
):
    hu = np.random.default_rng(3).integers(-1024, 3000, (9, 7, 8)).astype(np.int16)
    through = {"axial": 0, "coronal": 1, "sagittal": 2}[plane]
    slab = np.take(hu, range(2, 6), axis=through)
    kinds = {"mip": slab.max, "minip": slab.min, "average": slab.mean}
    expected = kinds[mode](axis=through).astype(float)
    shown = expected if plane == "axial" else expected[::-1]

    projected = run(
        page,
        "slab_projection",
        VOLUME_OF
        + """const projected = new Int16Array(argument.pixels);
        module.projectSlab(projected, plane, volume, { first: 2, last: 5 }, argument.mode);
        return [...projected];""",
        volume_argument(hu, plane=plane, mode=mode, pixels=shown.size),
    )

    assert np.abs(np.array(projected) - shown.ravel()).max() <= 0.5


def test_a_slab_leaves_out_what_has_not_arrived(page: Page):
    hu = np.full((4, 2, 2), 100, np.int16)
    hu[1] = 900

    projected = run(
        page,
        "slab_projection",
        VOLUME_OF
        + """const projected = new Int16Array(4);
        module.projectSlab(projected, plane, volume, { first: 0, last: 2 }, "mip");
        const some = [...projected];
        volume.arrived.fill(0);
        module.projectSlab(projected, plane, volume, { first: 0, last: 2 }, "mip");
        return [some, [...projected]];""",
        volume_argument(hu, plane="axial", missing=[1]),
    )

    assert projected == [[100] * 4, [-32768] * 4]


def test_a_slab_has_as_many_slices_as_come_nearest_to_its_thickness(page: Page):
    body = """const plane = { through: 2 };
        const volume = { size: [1, 1, 40], spacingMm: [1, 1, 2.5] };
        return [20, 1, 39].flatMap((at) => [10, 1, 1000].map((mm) => {
          const { first, last } = module.slabRange(plane, volume, at, mm);
          return [first, last];
        }));"""

    ranges = run(page, "slab_projection", body)

    assert ranges[:3] == [[19, 22], [20, 20], [0, 39]]
    assert ranges[3:6] == [[0, 3], [1, 1], [0, 39]]
    assert ranges[6:] == [[38, 39], [39, 39], [0, 39]]


def test_lengths_and_angles_are_in_the_planes_own_millimetres(page: Page):
    body = """const spacing = [0.7, 0.7, 2];
        const length = module.lengthMm([10, 5, 3], [40, 5, 13], spacing);
        const corner = [10, 5, 3];
        const angle = module.angleDegrees([[40, 5, 3], corner, [10, 5, 13]], spacing);
        const acute = module.angleDegrees([[40, 5, 3], corner, [40, 5, 13.5]], spacing);
        return [length, angle, acute, module.angleDegrees([corner, corner, corner], spacing)];"""

    length, angle, acute, none = run(page, "measuring", body)

    assert length == pytest.approx(np.hypot(30 * 0.7, 10 * 2))
    assert angle == pytest.approx(90)
    assert acute == pytest.approx(45)
    assert none == 0


@pytest.mark.parametrize("plane", ["axial", "coronal", "sagittal"])
def test_an_ellipse_takes_the_voxels_whose_centres_lie_in_it(page: Page, plane: str):
    hu = np.random.default_rng(5).integers(-1024, 3000, (30, 28, 26)).astype(np.int16)
    across, down = {"axial": (0, 1), "coronal": (0, 2), "sagittal": (1, 2)}[plane]
    one, other = [9.0, 9.0, 9.0], [9.0, 9.0, 9.0]
    one[across], other[across] = 3.2, 17.9
    one[down], other[down] = 21.4, 6.1

    found = run(
        page,
        "measuring",
        VOLUME_OF
        + """const shape = { kind: "ellipse", plane: argument.plane, points: argument.points };
        return module.valuesOf(shape, volume);""",
        volume_argument(hu, plane=plane, points=[one, other], spacing=[0.7, 0.8, 2]),
    )

    grid = np.indices(hu.shape)[::-1]  # x, y, z of each voxel
    distance = sum(
        ((grid[axis] - (one[axis] + other[axis]) / 2) / (abs(one[axis] - other[axis]) / 2)) ** 2
        for axis in (across, down)
    )
    through = 3 - across - down
    inside = hu[(distance <= 1) & (grid[through] == 9)].astype(float)
    spacing = (0.7, 0.8, 2)
    area = np.pi / 4
    for axis in (across, down):
        area *= abs(one[axis] - other[axis]) * spacing[axis]
    assert found == pytest.approx(
        {
            "area_mm2": area,
            "mean_hu": inside.mean(),
            "sd_hu": inside.std(),
            "min_hu": inside.min(),
            "max_hu": inside.max(),
        }
    )


def test_an_ellipse_over_slices_on_their_way_has_no_values_yet(page: Page):
    hu = np.zeros((6, 6, 6), np.int16)
    body = (
        VOLUME_OF
        + """const points = [[1, 2, 1], [4, 2, 4]];
        return module.valuesOf({ kind: "ellipse", plane: "coronal", points }, volume);"""
    )

    assert run(page, "measuring", body, volume_argument(hu, plane="coronal", missing=[3])) == {}


def test_studies_lie_on_one_another_by_the_ends_of_their_lungs(page: Page):
    body = """const lungs = (low, high) => ({ first: [0, 0, low], last: [9, 9, high] });
        const now = { size: [10, 10, 100], spacing_mm: [1, 1, 2], lungs: lungs(20, 70) };
        const before = { size: [10, 10, 60], spacing_mm: [1, 1, 5], lungs: lungs(10, 32) };
        const level = (z) => module.aligned([4, 5, z], now, before)[2];
        const back = module.aligned([4, 5, 21], before, now)[2];
        const none = module.aligned([4, 5, 60], { ...now, lungs: null }, before)[2];
        return [level(20), level(70), level(45), level(15), level(80), back, none];"""

    low, high, middle, below, above, back, none = run(page, "alignment", body)

    assert (low, high) == pytest.approx((10, 32))
    assert middle == pytest.approx(21)
    assert below == pytest.approx(10 - 10 / 5)
    assert above == pytest.approx(32 + 20 / 5)
    assert back == pytest.approx(45)
    assert none == pytest.approx(29.5 + 21 / 5)


def test_the_letters_go_with_the_picture_and_a_place_comes_back(page: Page):
    body = """const { PLANES } = await import(`${path}/planes.js`);
        const { mirrored, upsideDown, turned } = module.TURNS;
        const told = (...turns) => {
          const orientation = turns.reduce((old, turn) => turn(old), module.STANDARD);
          const { left, right, top, bottom } = module.sidesOf(PLANES[0], orientation);
          const room = { width: 500, height: 300, columns: 20, rows: 30, mmAcross: 2, mmDown: 1 };
          const view = { orientation, zoom: 1.7, panX: 12, panY: -5 };
          const transform = new module.ViewTransform(room, view);
          const back = transform.toSlice(...transform.toScreen(7.25, 21.5));
          return [left + right + top + bottom, module.orientationMark(orientation), back];
        };
        return [told(), told(mirrored), told(upsideDown), told(turned), told(turned, turned),
          told(mirrored, turned), told(turned, turned, turned, turned)];"""

    told = run(page, "view_transform", body)

    assert [(letters, mark) for letters, mark, _ in told] == [
        ("RLAP", ""),
        ("LRAP", "MIRRORED"),
        ("RLPA", "MIRRORED"),
        ("PARL", "ROTATED"),
        ("LRPA", "ROTATED"),
        ("PALR", "MIRRORED"),
        ("RLAP", ""),
    ]
    for *_, back in told:
        assert back == pytest.approx([7.25, 21.5])


def test_a_key_is_named_as_it_is_pressed(page: Page):
    body = """const { keyOf } = module;
        const press = (key, held) => keyOf(new KeyboardEvent("keydown", { key, ...held }));
        const shift = { shiftKey: true };
        return [press("n"), press("N", shift), press("N"), press("?", shift),
          press("z", { ctrlKey: true }), press(" "), press("ArrowUp", shift)];"""

    assert run(page, "keys", body) == [
        "n",
        "shift+n",
        "n",
        "?",
        "ctrl+z",
        "space",
        "shift+arrowup",
    ]


def test_who_undoes_a_stroke_takes_back_what_it_judged(page: Page):
    told = run(
        page,
        "edit_regions",
        """const { LesionMask } = await import(`${path}/masks.js`);
        const regions = new module.EditRegions([8, 8, 4], [1]);
        regions.addMachine(new LesionMask(1, [0, 0, 0], [1, 0, 0], new Uint8Array([3])));
        const told = [];
        regions.onChange((number, judged) => {
          regions.judged = { [number]: judged };
          told.push(judged ?? null);
        });
        const paint = () => { regions.paint(1, [2], true); regions.endStroke(); };
        paint();
        regions.eraseAll(1);
        regions.undo();
        regions.undo();
        paint();
        regions.judged = { 1: false };
        regions.undo();
        return told;""",
    )

    # The last was rejected after the stroke: that stays.
    assert told == [True, False, True, None, True, False]


def test_an_added_lesion_gives_way_to_one_of_the_same_number(page: Page):
    numbers = run(
        page,
        "edit_regions",
        """const regions = new module.EditRegions([8, 8, 4], [1]);
        regions.paint(2, [2], true);
        regions.paint(4, [9], true);
        regions.taken = new Set([2, 3]);
        const moved = regions.renumber([2, 3]);
        return [[...moved], regions.standing().map(([number]) => number), regions.canUndo];""",
    )

    assert numbers == [[[2, 5]], [4, 5], False]
