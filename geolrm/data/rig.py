"""The camera rig of our own renders, and the roles that its views, or a foreign object's, play.

In: an object's key. Out: 40 cameras in GObjaverse's numbering and 16 test cameras. Convention: views 0 to 23 orbit at
15-degree azimuth steps, 24 repeats 0, 25 looks down, 26 looks up, 27 to 38 ring at 30-degree steps, 39 repeats 27: 40
files, 38 distinct. Each orbit has one elevation per object, drawn from a hash of its key. Roles are read off the poses,
never off the numbers, so that real GObjaverse objects, whose numbering is only inferred, get theirs by the same rule.
Trade: fixed radius and field of view, at which the ball of radius 0.5 fits the frame and the full cube would be cropped.
Verified by azimuths, elevations and roles recomputed from the poses.
"""

from __future__ import annotations

import hashlib

import torch
from torch import Tensor

from geolrm.cameras import Cameras, orbit
from geolrm.failures import BadInput

FOV = 39.6  # degrees, GObjaverse's focal length of 711.1 pixels at 512
RADIUS = 2.0
VIEWS = 40
TEST_VIEWS = 16
ORBIT_VIEWS = 24
ORBIT_ELEVATIONS = (5.0, 30.0)
RING_ELEVATIONS = (-5.0, 5.0)
TEST_ELEVATIONS = (-10.0, 10.0, 30.0, 50.0)
VERTICAL_ELEVATION = 80.0  # above it a view is the top, below its negative the bottom
ELEVATION_STEP = 0.1
POSE_TOLERANCE = 1e-4


def _elevation(key: str, name: str, bounds: tuple[float, float]) -> float:
    """Elevation in degrees drawn from the hash of an object's key.

    It is the middle of one of the 0.1-degree steps between the bounds, so that no pose lies on the bound of two roles.
    """
    low, high = bounds
    steps = round((high - low) / ELEVATION_STEP)
    digest = hashlib.sha256(f"{name}/{key}".encode()).digest()
    return low + (int.from_bytes(digest[:8], "big") % steps + 0.5) * ELEVATION_STEP


def render_rig(key: str) -> Cameras:
    """Cameras (40,) from which we render the object of this key, in GObjaverse's numbering."""
    first, second = _elevation(key, "orbit", ORBIT_ELEVATIONS), _elevation(key, "ring", RING_ELEVATIONS)
    views = [(15.0 * i, first) for i in range(24)] + [(0.0, first), (0.0, 90.0), (0.0, -90.0)]
    views += [(30.0 * i, second) for i in range(12)] + [(0.0, second)]
    azimuths, elevations = torch.tensor(views, dtype=torch.float64).unbind(-1)
    return orbit(azimuths, elevations, RADIUS, FOV)


def test_rig() -> Cameras:
    """Cameras (16,) of the test views, the same for all objects: never input, never part of a label."""
    views = [(11.25 + 22.5 * k, TEST_ELEVATIONS[k % 4]) for k in range(TEST_VIEWS)]
    azimuths, elevations = torch.tensor(views, dtype=torch.float64).unbind(-1)
    return orbit(azimuths, elevations, RADIUS, FOV)


test_rig.__test__ = False  # type: ignore[attr-defined]  # no test, though pytest would take it for one by its name


def azimuths_and_elevations(cameras: Cameras) -> tuple[Tensor, Tensor]:
    """Degrees (V,) each: azimuth in [0, 360) from world x towards y, elevation above the xy plane, of the camera centres."""
    x, y, z = cameras.positions.double().unbind(-1)
    return torch.rad2deg(torch.atan2(y, x)) % 360, torch.rad2deg(torch.atan2(z, torch.hypot(x, y)))


def view_roles(cameras: Cameras) -> list[str]:
    """What each of the views (V,) is: "orbit", "ring", "top", "bottom", "duplicate" or "other".

    "orbit" has an elevation of 5 to 30 degrees and "ring" of -5 to 5 (GeoLRM, section 4.1); a view whose pose equals an
    earlier one's is a "duplicate", whatever else it is.
    """
    elevations = azimuths_and_elevations(cameras)[1].tolist()
    poses = cameras.camera_to_world
    roles = []
    for i, elevation in enumerate(elevations):
        if i and ((poses[:i] - poses[i]).abs().amax(dim=(-1, -2)) < POSE_TOLERANCE).any():
            roles.append("duplicate")
        elif abs(elevation) > VERTICAL_ELEVATION:
            roles.append("top" if elevation > 0 else "bottom")
        elif ORBIT_ELEVATIONS[0] <= elevation <= ORBIT_ELEVATIONS[1]:
            roles.append("orbit")
        elif RING_ELEVATIONS[0] <= elevation < RING_ELEVATIONS[1]:
            roles.append("ring")
        else:
            roles.append("other")
    return roles


def orbit_inputs(count: int) -> tuple[int, ...]:
    """Positions within the 24 views of the orbit of `count` evenly spread input views: floor(24 i / count).

    Raises ValueError unless count is 1 to 24.
    """
    if not 1 <= count <= ORBIT_VIEWS:
        raise ValueError(f"{count} input views asked of an orbit of {ORBIT_VIEWS}")
    return tuple(ORBIT_VIEWS * i // count for i in range(count))


def orbit_views(key: str, roles: list[str], count: int) -> list[int]:
    """Positions of `count` input views spread evenly over the orbit of an object whose views play these roles.

    Raises:
        BadInput: `too_few_views` when the orbit has not 24 views or `count` is above 24.
    """
    orbit = [i for i, role in enumerate(roles) if role == "orbit"]
    if not 1 <= count <= len(orbit) or len(orbit) != ORBIT_VIEWS:
        detail = f"{count} input views asked of an orbit of {len(orbit)} views (a full one has {ORBIT_VIEWS})"
        raise BadInput("too_few_views", key, detail, "ask for fewer views or render the object again")
    return [orbit[i] for i in orbit_inputs(count)]
