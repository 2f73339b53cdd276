"""Picture metrics against closed forms and the kept library."""

import math

import pytest
import torch
from skimage.metrics import structural_similarity

from geolrm.metrics.image import (
    DEPTH_MISSING,
    PSNR_MAX,
    depth_error,
    error_map,
    mask_iou,
    psnr,
    psnr_foreground,
    psnr_pooled,
    ssim,
)


def pictures(seed: int = 0, views: int = 2, size: int = 40) -> torch.Tensor:
    noise = torch.rand(views, 3, size, size, generator=torch.Generator().manual_seed(seed))
    return torch.nn.functional.avg_pool2d(noise, 3, 1, 1)


def test_psnr_of_a_constant_error_is_its_closed_form():
    truth = torch.full((3, 3, 8, 8), 0.5)
    assert torch.allclose(psnr(truth + 0.1, truth), torch.full((3,), 20.0), atol=1e-4)


def test_a_perfect_picture_scores_the_finite_maximum():
    truth = pictures()
    assert (psnr(truth, truth) == PSNR_MAX).all()
    assert torch.allclose(ssim(truth, truth), torch.ones(2))


def test_foreground_psnr_reads_the_foreground_alone():
    truth = torch.zeros(1, 3, 8, 8)
    foreground = torch.zeros(1, 1, 8, 8, dtype=torch.bool)
    foreground[..., :4] = True
    image = truth.clone()
    image[..., 4:] = 1.0  # outside: as wrong as can be, and of no matter
    image[..., :4] = 0.1
    assert math.isclose(psnr_foreground(image, truth, foreground).item(), 20.0, abs_tol=1e-4)
    assert psnr_foreground(image, truth, foreground & False).isnan().all()


def test_ssim_is_that_of_scikit_image_with_the_same_window():
    image, truth = pictures(1), pictures(2)
    expected = [
        structural_similarity(
            b.numpy(),
            a.numpy(),
            channel_axis=0,
            data_range=1.0,
            sigma=1.5,
            gaussian_weights=True,
            use_sample_covariance=False,
        )
        for a, b in zip(image, truth, strict=True)
    ]
    assert torch.allclose(ssim(image, truth), torch.tensor(expected, dtype=torch.float32), atol=1e-5)


def test_half_a_pixel_of_shift_and_a_flip_are_seen():
    truth = pictures(3, size=64)
    shifted = (truth + truth.roll(1, -1)) / 2
    flipped = truth.flip(-1)
    for metric in (psnr, ssim):
        perfect, half, mirrored = (metric(image, truth).min() for image in (truth, shifted, flipped))
        assert perfect > half > mirrored


def test_error_map_is_the_mean_over_channels():
    truth = torch.zeros(1, 3, 4, 4)
    image = truth.clone()
    image[0, 0, 1, 2] = 0.9
    assert error_map(image, truth).shape == (1, 1, 4, 4)
    assert math.isclose(error_map(image, truth)[0, 0, 1, 2].item(), 0.3, abs_tol=1e-6)


@pytest.mark.parametrize("wrong", [torch.full((1, 3, 16, 16), 2.0), torch.full((1, 3, 16, 16), float("nan"))])
def test_pictures_outside_the_range_are_refused(wrong):
    with pytest.raises(ValueError, match="must lie in"):
        psnr(wrong, torch.zeros(1, 3, 16, 16))


def test_pooled_psnr_is_of_one_mean_and_never_above_the_mean_of_views():
    truth = torch.full((2, 3, 8, 8), 0.5)
    image = truth.clone()
    image[0] += 0.1
    image[1] += 0.2
    assert math.isclose(psnr_pooled(image, truth), -10 * math.log10((0.01 + 0.04) / 2), abs_tol=1e-4)
    assert psnr_pooled(image, truth) < psnr(image, truth).mean()
    assert psnr_pooled(truth, truth) == PSNR_MAX


def test_mask_iou_of_half_a_frame_against_a_quarter_of_it_is_a_half():
    truth, alpha = torch.zeros(3, 1, 8, 8), torch.zeros(3, 1, 8, 8)
    truth[:2, :, :4] = 1.0
    alpha[0, :, :2] = 0.6
    alpha[0, :, 6:] = 0.5  # not above a half: no surface
    found = mask_iou(alpha, truth)
    assert found[:2].tolist() == [0.5, 0.0]
    assert found[2].isnan()  # nothing there, nothing shown: no view to average


def test_depth_error_is_the_median_and_a_missing_surface_counts_the_diagonal():
    truth = torch.zeros(2, 4, 4)
    truth[:, :2] = 2.0
    alpha = torch.ones(2, 1, 4, 4)
    assert depth_error(truth + 0.25, alpha, truth) == 0.25  # also where there is no truth: it does not count
    few = alpha.clone()
    few[:, :, 0] = 0.3
    few[0, :, 1, 0] = 0.3
    assert depth_error(truth, few, truth) == pytest.approx(DEPTH_MISSING)  # 9 of 16 pixels
    few[0, :, 1, 0], few[0, :, 0, 0] = 1.0, 1.0
    assert depth_error(truth, few, truth) == 0.0  # 7 of 16
    assert depth_error(truth, alpha, torch.zeros_like(truth)) is None
