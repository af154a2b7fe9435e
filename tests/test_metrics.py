"""These tests check the measures without a network against closed forms, and what each column of `measure` looks at."""

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from drawn_images import drawn_image
from PIL import Image

from composition import Sample, Scan
from composition.metrics import METRICS, Comparison, Metric, Networks, Reference, measure, psnr, seam, ssim
from composition.metrics.label_truth import measure_label
from composition.metrics.resize import square
from composition.placement import place, placed_object

# Wang et al. 2004, section III.C: C = (K L)^2, and L, the images' range, is 2.
C1, C2 = (0.01 * 2) ** 2, (0.03 * 2) ** 2


def box(size, rows, columns):
    mask = torch.zeros(1, 1, size, size, dtype=torch.bool)
    mask[..., slice(*rows), slice(*columns)] = True
    return mask


EVERYWHERE = torch.ones(1, 1, 40, 40, dtype=torch.bool)


def test_psnr_of_a_constant_difference():
    image = drawn_image(40) / 2
    # Range 2, mean squared error 0.1^2: 20 log10(2 / 0.1). The images are float32, hence 1e-5 dB.
    assert psnr(image, image + 0.1, EVERYWHERE).item() == pytest.approx(20 * math.log10(20), abs=1e-5)
    assert psnr(image, image, EVERYWHERE).item() == math.inf


def test_psnr_looks_at_the_region_alone_and_at_every_row_by_itself():
    image, region = drawn_image(40), box(40, (5, 20), (10, 40))
    changed = torch.where(region, image, image + 1)
    both = psnr(torch.cat([changed, image + 0.5]), torch.cat([image, image]), torch.cat([region, region]))
    assert both[0].item() == math.inf
    assert both[1].item() == pytest.approx(20 * math.log10(4), abs=1e-5)


def test_ssim_of_constants_is_the_luminance_term():
    a, b = torch.full((1, 3, 40, 40), 0.25), torch.full((1, 3, 40, 40), -0.5)  # exact in binary
    expected = (2 * 0.25 * -0.5 + C1) / (0.25**2 + 0.5**2 + C1)
    # The windows' weights sum to 1 up to rounding, which leaves variances of 1e-17 where 4e-4 * 9 is added.
    assert ssim(a, b, EVERYWHERE).item() == pytest.approx(expected, abs=1e-9)


def test_ssim_of_one_window_by_hand():
    a, b = drawn_image(11)[0].double().numpy(), drawn_image(11, 1)[0].double().numpy()
    line = np.exp(-((np.arange(11) - 5) ** 2) / (2 * 1.5**2))
    weights = np.outer(line, line) / np.outer(line, line).sum()
    expected = []
    for x, y in zip(a, b, strict=True):
        mx, my = (weights * x).sum(), (weights * y).sum()
        vx, vy = (weights * (x - mx) ** 2).sum(), (weights * (y - my) ** 2).sum()
        vxy = (weights * (x - mx) * (y - my)).sum()
        expected.append((2 * mx * my + C1) * (2 * vxy + C2) / ((mx**2 + my**2 + C1) * (vx + vy + C2)))
    got = ssim(torch.from_numpy(a)[None], torch.from_numpy(b)[None], torch.ones(1, 1, 11, 11, dtype=torch.bool))
    # Double precision; E[x^2] - E[x]^2 loses a few digits of the sixteen.
    assert got.item() == pytest.approx(np.mean(expected), abs=1e-10)


def test_ssim_counts_windows_wholly_inside_the_region():
    image, region = drawn_image(40), box(40, (0, 40), (0, 25))
    changed = image.clone()
    changed[..., 25:] *= -1
    # No window inside the region sees a change; 1e-9 as the same numbers are divided by each other.
    assert ssim(image, changed, region).item() == pytest.approx(1, abs=1e-9)
    changed[..., 24:] *= -1
    assert ssim(image, changed, region).item() < 0.999
    assert math.isnan(ssim(image, image, box(40, (0, 40), (0, 10))).item())
    assert math.isnan(ssim(image[..., :8], image[..., :8], EVERYWHERE[..., :8]).item())


def test_seam_of_a_step_by_hand():
    flat = torch.zeros(1, 3, 6, 6)
    mask = box(6, (2, 4), (2, 4))
    placed = torch.full_like(flat, 0.4)
    pasted = torch.where(mask, placed, flat)
    # A 2x2 square has 8 neighbours across its edge, and every one of them steps by 0.4 of 2: 51 of 255 grey levels.
    assert seam(pasted, flat, placed, mask).item() == pytest.approx(51, rel=1e-6)  # 0.4 is a float32
    half = pasted.clone()
    half[..., 1, 2:4] = half[..., 4, 2:4] = 0.4  # the steps above and below are gone, 4 of the 8
    assert seam(half, flat, placed, mask).item() == pytest.approx(25.5, rel=1e-6)
    # A step that the placed object has itself, the tumour's contrast, is no seam.
    assert seam(pasted, flat, pasted, mask).item() == 0
    assert seam(flat, flat, placed, mask).item() == 0
    assert math.isnan(seam(pasted, flat, placed, torch.ones_like(mask)).item())


def test_distortions_are_ordered():
    background, placed, mask = drawn_image(40), drawn_image(40, 2), box(40, (10, 30), (8, 33))
    pasted = torch.where(mask, placed, background)
    feathered = F.avg_pool2d(mask.float(), 9, stride=1, padding=4)
    blended = feathered * placed + (1 - feathered) * background
    assert seam(pasted, background, placed, mask) > 2 * seam(blended, background, placed, mask)
    noise = torch.randn(background.shape, generator=torch.Generator().manual_seed(0))
    for score in (psnr, ssim):
        values = [score(background, background + strength * noise, EVERYWHERE).item() for strength in (0.01, 0.1, 0.4)]
        assert values == sorted(values, reverse=True) and values[0] > values[-1]


class Distance:
    """A stand-in for LPIPS: the mean absolute difference, and the sizes of what it was shown."""

    name = "distance"

    def __init__(self):
        self.sizes = []

    def features(self, image):
        self.sizes.append(tuple(image.shape[2:]))
        return image

    def distance(self, a, b):
        return (a - b).abs().mean(dim=(1, 2, 3))


class Brightness:
    """A stand-in for CLIP: the mean of the first image and the length of the prompt, and the sizes of the crops."""

    name = "brightness"

    def image_similarity(self, a, b):
        self.sizes = (tuple(a.shape[2:]), tuple(b.shape[2:]))
        return a.mean(dim=(1, 2, 3))

    def text_similarity(self, images, prompts):
        return images.mean(dim=(1, 2, 3)) + torch.tensor([float(len(prompt)) for prompt in prompts])


def doubles():
    return Networks(Distance(), Brightness())


def test_columns_look_where_their_definitions_say():
    background, placed = drawn_image(40), drawn_image(40, 2)
    object_mask, user_mask = box(40, (14, 24), (14, 26)), box(40, (12, 26), (12, 28))
    user_mask[..., 12, 12] = False  # a mask need not be a box; its corner is background, and in the edited region
    composite = torch.where(object_mask, placed, background)
    reference = Reference(background, placed, object_mask, user_mask, "four", doubles(), contrast_own=50.0)

    before = measure(Comparison(composite, reference))
    assert list(before) == list(METRICS)
    assert before["lpips_bg"] == 0 and before["psnr_bg"] == math.inf and before["ssim_bg"] == pytest.approx(1, abs=1e-9)
    label = {"correlation", "grey_shift"}
    for pixel, moved in {
        (20, 20): {"lpips_fg", "clip_text", "clip_image", "psnr_fg", "psnr_object", "ssim_fg", *label},  # in the object
        (25, 27): {"lpips_fg", "clip_text", "clip_image", "psnr_fg", "ssim_fg"},  # the user mask's last pixel
        (12, 12): {"lpips_bg", "lpips_fg", "clip_text", "clip_image", "psnr_bg", "psnr_fg", "ssim_fg", "ssim_bg"},
        (2, 35): {"lpips_bg", "clip_text", "psnr_bg", "ssim_bg"},  # outside
    }.items():
        changed = composite.clone()
        changed[(..., *pixel)] -= 0.5
        after = measure(Comparison(changed, reference))
        # A median moves with some pixels and not with others, and has tests of its own.
        assert {name for name in METRICS if after[name] != before[name]} - {"seam_user", "contrast"} == moved


def test_images_are_brought_to_512_pixels_and_crops_to_224():
    image, mask, networks = drawn_image(40), box(40, (12, 26), (12, 28)), doubles()
    measure(Comparison(image, Reference(image, image, mask, mask, "prompt", networks)))
    whole, crop = (512, 512), (224, 224)  # the paper's canvas; AlexNet's and CLIP's input
    assert networks.lpips.sizes == [whole, whole, crop, crop] and networks.clip.sizes == (crop, crop)


@pytest.mark.parametrize(("height", "width", "side"), [(90, 61, 20), (14, 17, 50)])
def test_resizing_is_bicubic_with_antialiasing(height, width, side):
    # The image has full contrast, so that edges overshoot either way. That is cut off at 1 and -1.
    image = drawn_image(128)[..., 26 : 26 + height, 26 : 26 + width].sign()
    own = [Image.fromarray(c.numpy()).resize((side, side), Image.Resampling.BICUBIC) for c in image[0]]
    expected = torch.from_numpy(np.stack(own)).clamp(-1, 1)[None]
    assert (expected.amin(), expected.amax()) == (-1, 1)
    # Pillow's code is independent of torch's. Each sums some ten float32 products of the order of 1: 1e-7 each.
    torch.testing.assert_close(square(image, side), expected, rtol=0, atol=1e-5)


def test_composites_of_one_sample_share_its_reference_and_are_measured_each_by_itself():
    background, placed, mask = drawn_image(40), drawn_image(40, 2), box(40, (12, 26), (12, 28))
    composites = [background, torch.where(mask, placed, background), placed]
    shared = Reference(background, placed, mask, mask, "four", doubles())
    found = [measure(Comparison(composite, shared)) for composite in composites]
    assert len(shared.networks.lpips.sizes) == 2 * len(composites) + 2  # the reference's two, once only
    for composite, values in zip(composites, found, strict=True):
        assert values == measure(Comparison(composite, Reference(background, placed, mask, mask, "four", doubles())))


def test_any_subset_is_measured_by_name_and_nothing_else_is_computed():
    image, mask, networks = drawn_image(40), box(40, (12, 26), (12, 28)), doubles()
    comparison = Comparison(image, Reference(image, drawn_image(40, 2), mask, mask, "prompt", networks))
    everything = measure(comparison)
    networks.lpips.sizes.clear()
    assert measure(comparison, ["seam_user", "psnr_fg"]) == {
        name: everything[name] for name in ("seam_user", "psnr_fg")
    }
    assert networks.lpips.sizes == []
    with pytest.raises(ValueError, match="psnr: not among the metrics lpips_bg, "):
        measure(comparison, ["psnr"])


def test_metrics_of_networks_that_are_not_given_are_absent():
    image, mask = drawn_image(40), box(40, (12, 26), (12, 28))
    comparison = Comparison(image, Reference(image, image, mask, mask, "prompt"))
    values = measure(comparison)
    assert set(values) == {name for name in METRICS if not name.startswith(("lpips", "clip"))}
    assert values["psnr_bg"] == values["psnr_fg"] == math.inf
    assert values["ssim_bg"] == pytest.approx(1, abs=1e-9) and values["ssim_fg"] == pytest.approx(1, abs=1e-9)
    assert values["seam_object"] == values["seam_user"] == values["grey_shift"] == 0
    assert math.isnan(values["contrast"])  # nobody said what it is in the tumour's own scan
    with pytest.raises(ValueError, match="lpips_bg: the network that measures it is not given"):
        measure(comparison, ["psnr_bg", "lpips_bg"])


def test_a_heading_names_the_network_where_its_figures_must_not_be_read_without():
    assert METRICS["lpips_bg"].title({}) == "LPIPS bg"
    assert METRICS["lpips_bg"].title({"lpips": "ST-LPIPS (alex)"}) == "ST-LPIPS (alex) bg"
    assert METRICS["clip_text"].title({"clip": "CLIP (somewhere)"}) == "CLIP text"
    assert Metric("loudness", True, float).title({"lpips": "x"}) == "loudness"


def test_the_labels_columns_are_the_labels_measures():
    rng = np.random.default_rng(0)
    mask, user_mask = (box(40, *sides)[0, 0].numpy() for sides in (((8, 20), (8, 20)), ((14, 26), (12, 28))))
    bright = np.zeros_like(mask), mask, user_mask
    scans = [Scan((rng.integers(9, 150, (40, 40)) + 100 * inside).astype(np.uint8)) for inside in bright]
    one = Sample(*scans[:2], mask, user_mask, None)
    placement = place(*scans[:2], mask, user_mask)
    placed, composite, moved = placed_object(one, placement), scans[2], placement.object_mask
    label = measure_label(one, composite.pixels, placed, moved, (slice(None),) * 2, np.ones((5, 5)), 0.0)
    names = ["contrast", "correlation", "grey_shift"]
    found = measure(Reference.of(one, Networks()).compare(composite), names)
    # The columns are of float32 values: 8e-6 of a grey level, on contrasts of 5 levels and more.
    assert found == pytest.approx({name: getattr(label, name) for name in names}, rel=1e-5, abs=1e-5)
    own = Reference.of(one, Networks()).compare(Scan(placed))
    assert measure(own, names[1:]) == {"correlation": pytest.approx(1, abs=1e-12), "grey_shift": 0}


def test_shapes_that_do_not_fit():
    image, mask = drawn_image(40), box(40, (10, 30), (10, 30))
    with pytest.raises(ValueError, match="of one size"):
        Reference(image, image[..., :30], mask, mask, "prompt")
    with pytest.raises(ValueError, match="of one size"):
        Reference(image, image, mask[..., :30], mask, "prompt")
    with pytest.raises(ValueError, match=r"of its background's size, \(1, 3, 40, 40\), got \(1, 3, 40, 30\)"):
        Comparison(image[..., :30], Reference(image, image, mask, mask, "prompt"))
    with pytest.raises(ValueError, match="user mask is empty"):
        Reference(image, image, mask, mask & False, "prompt")
    with pytest.raises(ValueError, match="bool region"):
        psnr(image, image, mask.float())
    with pytest.raises(ValueError, match="of one shape"):
        ssim(image, image[..., :30], mask)
