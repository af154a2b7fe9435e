"""A tumour is moved as a volume, in millimetres. These tests hold its size, place, directions and handedness for any
orientation, spacing and turn of both volumes, and how it comes to fit a region."""

import itertools
from functools import partial

import numpy as np
import pytest
from drawn_volumes import ellipsoid, middle, points, spaced, texture, turned

from composition import PlacementError
from composition.placement import SHARE_OUTSIDE
from composition.placement3d import HALF, Lesion, cut_out, margin, move_into, sliced_mask, sliced_values

CODES = ["RAS", "LPS", "PIR", "SAL", "IRP"]
AXES = (9.0, 7.0, 6.0)  # an ellipsoid's, in millimetres
MILLILITRES = 4 / 3 * np.pi * np.prod(AXES) / 1000


def lesion_of(inside, affine, values=None):
    """The Lesion of a volume (column, row, slice), not cut."""
    values = np.zeros(inside.shape) if values is None else values
    return Lesion(values.T.astype(np.float32).copy(), inside.T.copy(), affine)


def box(size):
    return np.ones(size, dtype=bool)


def move(lesion, affine, region, corner=(0, 0, 0), how="inside", true_size=True):
    return move_into(lesion, affine, region, corner, how, true_size)


def moved_mask(lesion, moved, shape):
    """The moved mask, bool (slice, row, column) of a background of this shape; nothing of it may lie beyond."""
    whole = np.zeros(shape, dtype=bool)
    for number in range(len(whole)):
        inside, part = sliced_mask(lesion, moved.to_lesion, number)
        if inside is not None:
            for row, column in np.argwhere(inside):
                whole[number, part[0].start + row, part[1].start + column] = True
    return whole


def millimetres(mask, affine):
    """The places (n, 3) of a mask's (slice, row, column) voxels."""
    return np.argwhere(mask)[:, ::-1] @ affine[:3, :3].T + affine[:3, 3]


@pytest.mark.parametrize(("own", "other"), list(itertools.product(CODES, CODES)))
def test_size_and_axes_are_kept_in_every_orientation(own, other):
    shape, zooms = (28, 24, 10), (1.0, 1.0, 2.5)
    inside = ellipsoid(shape, spaced(zooms), AXES)
    lesion = lesion_of(*turned(inside.astype(np.uint8), spaced(zooms), own))
    lesion = Lesion(lesion.values, lesion.inside > 0, lesion.affine)
    back = np.zeros((30, 32, 20), dtype=np.uint8)
    size, affine = (part := turned(back, spaced((1.5, 1.5, 2)), other))[0].shape[::-1], part[1]
    moved = move(lesion, affine, box(size))
    assert (moved.scale, moved.clipped) == (1, 0)
    mask = moved_mask(lesion, moved, size)
    # The ellipsoid has some 350 voxels of the background. A third of them lies at its edge, each to half of a voxel,
    # which averages out to a few hundredths; convex edges lose as much by interpolation between voxels of 2.5 mm.
    volume = mask.sum() * abs(np.linalg.det(affine[:3, :3])) / 1000
    assert volume == pytest.approx(MILLILITRES, rel=0.08)
    assert volume == pytest.approx(inside.sum() * 2.5 / 1000, rel=0.08)
    places = millimetres(mask, affine)
    # Half a voxel: the middle of the lesion's own box is that of the region's.
    assert np.abs(places.mean(axis=0) - middle(size[::-1], affine)).max() < 0.5 * 2
    # A solid ellipsoid varies by a fifth of its squared half axis; half a voxel of 2 mm at either end of 12 mm.
    np.testing.assert_allclose(places.std(axis=0), np.array(AXES) / np.sqrt(5), rtol=0.1)


@pytest.mark.parametrize("zooms", [(0.5, 0.5, 0.5), (2, 2, 2), (0.7, 0.7, 5), (3, 1, 1)])
@pytest.mark.parametrize("own", [(1, 1, 1), (0.8, 0.8, 4), (2, 1.5, 1)])
@pytest.mark.parametrize("turn", [(0, 0), (30, 0), (20, -35)])
def test_millilitres_are_kept_over_spacings_and_turns(zooms, own, turn):
    shape = tuple(int(np.ceil(2 * axis / zoom)) + 4 for axis, zoom in zip(AXES, own, strict=True))
    inside = ellipsoid(shape, spaced(own), AXES)
    lesion = lesion_of(inside, spaced(own))
    affine = spaced(zooms, *turn)
    size = tuple(int(40 / zoom) for zoom in zooms[::-1])
    mask = moved_mask(lesion, move(lesion, affine, box(size)), size)
    # Slices of 3 to 5 mm cut 12 mm of tumour into three or four: the smaller first and last are in or out as a whole,
    # where both volumes have such slices twice. Else it is the edge's voxels, as above.
    tolerance = 0.1 + 0.1 * (max(zooms) >= 3) + 0.1 * (max(own) >= 3)
    volume = mask.sum() * np.prod(zooms) / 1000
    assert volume == pytest.approx(inside.sum() * np.prod(own) / 1000, rel=tolerance)


def corkscrew():
    """Four arms of different lengths, which no mirror maps onto itself, in voxels (column, row, slice) of 2 mm."""
    inside = np.zeros((20, 20, 20), dtype=bool)
    inside[4:16, 4:7, 4:7] = True  # along x
    inside[13:16, 4:14, 4:7] = True  # at its end along y
    inside[13:16, 11:14, 4:17] = True  # at its end along z
    return inside


@pytest.mark.parametrize(("own", "other"), list(itertools.product(CODES, CODES[1:4])))
def test_a_corkscrew_keeps_its_handedness_and_directions(own, other):
    affine, inside = spaced((2, 2, 2)), corkscrew()
    data, own_affine = turned(inside.astype(np.uint8), affine, own)
    lesion = lesion_of(data > 0, own_affine)
    back = np.zeros((48, 48, 48), dtype=np.uint8)
    data, back_affine = turned(back, spaced((1, 1, 1)), other)
    moved = move(lesion, back_affine, box(data.shape[::-1]))
    places = millimetres(moved_mask(lesion, moved, data.shape[::-1]), back_affine)
    # What is inside goes where the patient's own axes take it: voxel by voxel, but for edges between voxels.
    expected = points(inside.shape, affine)[inside]
    shift = (places.max(axis=0) + places.min(axis=0)) / 2 - (expected.max(axis=0) + expected.min(axis=0)) / 2
    nearest = np.rint((places - shift - affine[:3, 3]) / 2).astype(int)
    found = inside[tuple(nearest.clip(0, 19).T)]
    # An edge may lie half a voxel off, a quarter of an arm of 6 mm; a mirror would leave less than half inside.
    assert found.mean() > 0.9 and len(places) == pytest.approx(8 * inside.sum(), rel=0.12)
    # The three directions one by one: the arm along z stands at the far end of that along y, and that of x.
    high = places[:, 2] > places[:, 2].mean() + 5
    assert (places[high][:, :2].mean(axis=0) > places[~high][:, :2].mean(axis=0)).all()


def test_a_lesion_of_the_backgrounds_own_voxels_is_copied():
    affine, inside = spaced((1.3, 1.3, 3), 10, 5), corkscrew()
    values = texture(points(inside.shape, affine))
    lesion = lesion_of(inside, affine, values)
    region = np.zeros((20, 20, 20), dtype=bool)
    region[4:17, 4:14, 4:16] = True
    moved = move(lesion, affine, region)
    assert moved.clipped == 0 and moved.slices == (4, 17)
    for number in range(20):
        mask, part = sliced_mask(lesion, moved.to_lesion, number)
        if not inside[:, :, number].any():
            assert mask is None
            continue
        own = tuple(slice(max(0, one.start), min(20, one.stop)) for one in part)
        inner = tuple(slice(a.start - b.start, a.stop - b.start) for a, b in zip(own, part, strict=True))
        assert np.array_equal(mask[inner], inside[:, :, number].T[own]) and mask.sum() == mask[inner].sum()
        found = sliced_values(lesion, moved.to_lesion, number, part)[inner]
        # float32 of values up to 1, at places that are off by 1e-5 of a voxel.
        np.testing.assert_allclose(found, values[:, :, number].T[own], rtol=0, atol=1e-4)


def test_values_move_with_the_mask():
    affine, back = spaced((1, 1, 2)), spaced((1.5, 1.25, 1.5), 25, 15)
    shape = (40, 40, 20)
    inside, where = ellipsoid(shape, affine, AXES), points(shape, affine)
    lesion = lesion_of(inside, affine, texture(where))
    moved = move(lesion, back, box((24, 30, 26)))
    seen = 0
    for number in range(*moved.slices):
        mask, part = sliced_mask(lesion, moved.to_lesion, number)
        found = sliced_values(lesion, moved.to_lesion, number, part)
        assert np.isfinite(found[mask]).all()
        index = np.argwhere(mask)[:, ::-1] + (part[1].start, part[0].start)
        index = np.column_stack([index, np.full(len(index), number)])
        places = index @ back[:3, :3].T + back[:3, 3] + middle(shape, affine) - middle((26, 30, 24), back)
        # Waves of 30 mm and more between voxels of 2 mm: interpolation loses (pi / 15)^2 / 2 of them at most, 0.03; and
        # the ellipsoid's own box lies up to half a voxel of 1 mm off the volume's middle, of a slope of 0.12.
        np.testing.assert_allclose(found[mask], texture(places), rtol=0, atol=0.09)
        seen += mask.sum()
    assert seen > 400


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_a_tumour_at_the_end_of_its_volume_has_values_wherever_its_mask_is(axis):
    """Half a voxel of it lies beyond the middle of its outermost voxels."""
    inside = np.zeros((12, 12, 12), dtype=bool)
    inside[4:8, 4:8, 4:8] = True
    inside = np.roll(inside, 4, axis=axis)
    lesion = lesion_of(inside, spaced((2, 2, 4)), np.full(inside.shape, 0.5))
    moved = move(lesion, spaced((1, 1, 1)), box((40, 30, 30)))
    seen = 0
    for number in range(*moved.slices):
        mask, part = sliced_mask(lesion, moved.to_lesion, number)
        found = sliced_values(lesion, moved.to_lesion, number, part)
        assert np.abs(found[mask] - 0.5).max() < 1e-6  # float32
        seen += mask.sum()
    assert seen * 1.0 == pytest.approx(64 * 16, rel=0.1)  # the corners of a cube are rounded


def sphere(radius, zoom):
    shape = (int(2 * radius / zoom) + 5,) * 3
    return lesion_of(ellipsoid(shape, spaced((zoom,) * 3), (radius,) * 3), spaced((zoom,) * 3))


def test_a_region_limits_the_size_and_fills_where_asked():
    lesion, affine = sphere(10, 1), spaced((1, 1, 2))
    fits = partial(move, lesion, affine)
    assert fits(box((20, 40, 40))).scale == 1 and fits(box((20, 40, 40)), how="box").scale == 1
    # 19 voxels lie within 10 mm of a middle that is itself one, and the smallest side of the region is 30 mm.
    assert fits(box((15, 40, 50)), true_size=False).scale == pytest.approx(30 / 19)
    small = fits(box((20, 12, 40)))
    assert small.scale == pytest.approx(12 / 19)
    rows = moved_mask(lesion, small, (20, 12, 40)).any(axis=(0, 2))
    assert rows.sum() >= 11  # 12, but for the rounding of a voxel at the poles


@pytest.mark.parametrize("true_size", [True, False])
def test_inside_makes_it_smaller_until_it_lies_in_the_region(true_size):
    """A cube in a ball: the largest has a side of 2 / sqrt(3) of the ball's radius."""
    cube = np.zeros((40, 40, 40), dtype=bool)
    cube[4:36, 4:36, 4:36] = True
    lesion, affine = lesion_of(cube, spaced((1, 1, 1))), spaced((1, 1, 1))
    ball = ellipsoid((41, 41, 41), affine, (20.2,) * 3).T
    by_box, inside = (move(lesion, affine, ball, how=how, true_size=true_size) for how in ("box", "inside"))
    assert by_box.clipped > 0.1 and by_box.scale == (1 if true_size else 41 / 32)
    assert inside.clipped <= SHARE_OUTSIDE
    mask = moved_mask(lesion, inside, ball.shape)
    assert (mask & ~ball).sum() <= SHARE_OUTSIDE * mask.sum()
    side = 32 * inside.scale
    # Whole voxels: one on each side. Eight corners that lose a hundredth in all gain a twelfth of the side or so.
    assert 2 / np.sqrt(3) * 20.2 - 2 < side < 2 / np.sqrt(3) * 20.2 * (1 + 1 / 12) + 2


def test_a_ragged_region_cuts_off_less_than_a_hundredth():
    rng = np.random.default_rng(3)
    affine = spaced((1, 1, 3))
    region = ellipsoid((50, 44, 16), affine, (22, 17, 21)).T & (rng.random((16, 44, 50)) > 0.002)
    corner = (5, 7, 9)
    moved = move(sphere(20, 1), affine, region, corner)
    assert moved.clipped <= SHARE_OUTSIDE and 0.6 < moved.scale < 1
    assert corner[0] <= moved.slices[0] < moved.slices[1] <= corner[0] + 16


def test_a_region_like_an_l_takes_it_into_its_thickest_arm():
    """Its box's middle is empty, where nothing fits at any size. Slices are 3 mm thick, so that arms count in mm."""
    region = np.zeros((14, 40, 40), dtype=bool)
    region[:, :, :8] = True  # an arm of 8 mm
    region[:, 22:] = True  # an arm of 18 mm, along the columns
    moved = move(sphere(12, 1), spaced((1, 1, 3)), region)
    assert moved.clipped <= SHARE_OUTSIDE
    mask = moved_mask(sphere(12, 1), moved, region.shape)
    assert mask.any() and (mask & ~region).sum() <= SHARE_OUTSIDE * mask.sum()
    # The arm's 18 mm of the sphere's 23, but for a step of the search and a voxel.
    assert 17 / 23 * 0.9 < moved.scale <= 19 / 23
    np.testing.assert_allclose(np.argwhere(mask).mean(axis=0)[:2], [6.5, 30.5], atol=1)  # a voxel


def test_a_region_that_misses_the_tumour_is_told():
    lesion, affine = sphere(6, 1), spaced((1, 1, 1))
    hollow = box((40, 40, 40))
    hollow[2:-2, 2:-2, 2:-2] = False  # the middle of its box is not in it
    with pytest.raises(PlacementError, match=r"nothing of the tumour is left inside .*; use a larger region"):
        move(lesion, affine, hollow, how="box")
    with pytest.raises(PlacementError, match=r"nothing of the tumour is left inside .*; use a larger region"):
        move(lesion_of(corkscrew(), affine), affine, box((1, 1, 1)))  # its middle is empty


def test_a_part_of_a_volume_lies_where_it_did():
    affine = spaced((1, 2, 3), 15, 25)
    volume = np.random.default_rng(0).random((10, 12, 14))  # slice, row, column
    inside = volume > 0.7
    part = slice(2, 8), slice(3, 9), slice(1, 12)
    lesion = cut_out(((volume[k], inside[k]) for k in range(2, 8)), part, affine)
    assert np.array_equal(lesion.values, volume[part].astype(np.float32)) and np.array_equal(
        lesion.inside, inside[part]
    )
    np.testing.assert_allclose(lesion.affine @ [4, 2, 3, 1], affine @ [1 + 4, 3 + 2, 2 + 3, 1], atol=1e-12)  # float64


def test_the_margin_holds_what_a_ring_needs():
    """A ring lies 2 pixels off the mask and is as wide as a quarter of it, which is at most of its longest side; along
    any axis, since a slice of another orientation may cut the tumour in any direction."""
    assert margin((3, 20, 40), np.array([1.0, 1.0, 1.0])) == (10 + 6, 10 + 6, 10 + 6)
    # A quarter of 40 mm, and three times the gap of 2 voxels of 4 mm; in voxels of each axis.
    assert margin((10, 20, 40), np.array([4.0, 0.5, 1.0])) == ((10 + 24) / 4 + 0.5, (10 + 24) * 2, 10 + 24)


def test_half_of_a_pixel_is_inside_in_spite_of_rounding():
    assert 0.499 < HALF < 0.5
    half = np.zeros((4, 4, 4), dtype=bool)
    half[:2] = True
    affine = np.eye(4)
    affine[:3, :3] *= 1 / 3  # thirds are no floats
    lesion = lesion_of(half, affine)
    to_lesion = np.eye(4)
    to_lesion[0, 3] = 0.5  # every column lies in the middle of two
    mask, part = sliced_mask(lesion, to_lesion, 1)
    assert [part[1].start + column for column in np.flatnonzero(mask.any(axis=0))] == [-1, 0, 1]
