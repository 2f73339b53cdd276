"""GeoLRM: posed pictures of an object to 3D Gaussians. See README.md for the tour, docs/conventions.md for the frames."""
