"""How good a picture or a surface is. `image`: PSNR, SSIM, error maps. `perceptual`: LPIPS. `geometry`: Chamfer, F-score."""
