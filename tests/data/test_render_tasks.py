"""Rendering an object in batches: whole objects, the same bytes from any batches, colour by path tracing in the same tar."""

import io
import tarfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from mesh_files import FACES, box_files, box_obj
from PIL import Image

from geolrm.data.meshes import Bundle
from geolrm.data.object_tar import RenderedObject, read_object_tar
from geolrm.data.render_tasks import RenderJob, batches, render_part, write_object

FACTS = {
    "dataset": "test",
    "layout": "folder",
    "split": "test",
    "licence": None,
    "attribution": None,
    "unit": "m",
}


def bundle(files: dict[str, bytes]) -> Bundle:
    return Bundle("box", "box", None, "test", "box.obj", files)


def job(path: Path, size: int = 24, supersampling: int = 2) -> RenderJob:
    return RenderJob(FACTS, "z", size, supersampling, 1, path)


def rendered(job: RenderJob, files: dict[str, bytes], views: int = 40) -> RenderedObject:
    """The object tar of a box, written from batches of so many views and read again."""
    parts = [render_part(job, bundle(files), batch) for batch in batches(views)]
    assert write_object(job, "box", parts) > 0
    return read_object_tar(job.path, normals=True)


def test_an_object_has_all_its_views_its_surface_and_its_facts(tmp_path):
    files = box_files(sides=(0.2, 0.1, 0.1), centre=(1, 2, 3))
    obj = rendered(job(tmp_path / "box.tar"), files)
    assert len(obj.views) == 40
    assert len(obj.test_views) == 16
    assert obj.normals.shape == (40, 3, 24, 24)
    assert obj.points.shape == (131_072, 3)
    to_source = [[0.2, 0, 0, 1], [0, 0.2, 0, 2], [0, 0, 0.2, 3], [0, 0, 0, 1]]
    assert np.allclose(obj.meta["object_to_source"], to_source)
    assert (obj.meta["unit"], obj.meta["surface"], obj.meta["faces"]) == ("m", "mesh", 12)
    seen = obj.views.depth > 0
    assert torch.equal(seen, obj.normals.norm(dim=1) > 0.5)
    assert (obj.views.alpha[:, 0][seen] > 0).all()


def test_batches_of_any_size_in_any_order_on_any_number_of_threads_give_the_same_bytes(tmp_path):
    files = box_files(sides=(0.9, 0.9, 0.9))  # some of its views are cropped
    whole = job(tmp_path / "whole.tar")
    assert rendered(whole, files).meta["cropped_views"]
    pieces = replace(whole, path=tmp_path / "pieces.tar", threads=0)
    parts = [render_part(pieces, bundle(files), batch) for batch in batches(7)]
    assert len(parts) == 9
    write_object(pieces, "box", parts[::-1])
    assert pieces.path.read_bytes() == whole.path.read_bytes()


def test_albedo_lies_beside_the_views_where_it_is_asked_for_and_disturbs_no_reader(tmp_path):
    files = box_files(sides=(0.5, 0.3, 0.4))
    plain, asked = job(tmp_path / "plain.tar", size=16), replace(job(tmp_path / "asked.tar", size=16), albedo=True)
    one, other = rendered(plain, files), rendered(asked, files, views=9)
    assert torch.equal(one.views.colour, other.views.colour)
    assert torch.equal(one.normals, other.normals)
    with tarfile.open(plain.path) as less, tarfile.open(asked.path) as more:
        added = sorted(set(more.getnames()) - set(less.getnames()))
        assert len(added) == 56
        picture = Image.open(io.BytesIO(more.extractfile("box/campos_512_v4/00025/00025_albedo.png").read()))
    assert (picture.mode, picture.size) == ("RGBA", (16, 16))
    top = FACES[4]  # what view 25 looks down on
    assert picture.getpixel((5, 6)) == (*top.light, 255)
    assert picture.getpixel((10, 9)) == (*top.colour, 255)


def test_an_untextured_mesh_is_rendered_grey_and_says_so(tmp_path):
    obj = rendered(job(tmp_path / "box.tar", supersampling=1), {"box.obj": box_obj(library="")})
    assert obj.meta["warnings"] == ["untextured"]
    colours = obj.views.colour.movedim(1, -1)[obj.views.alpha[:, 0] > 0]
    assert torch.allclose(colours, colours[:, :1].expand_as(colours))
    assert colours.max() > 0.4


def test_traced_colour_comes_with_the_geometry_of_ray_casting(tmp_path):
    pytest.importorskip("mitsuba", reason="path tracing needs Mitsuba: pip install -e '.[mitsuba]'")
    files = box_files(sides=(0.5, 0.3, 0.4))
    cast = job(tmp_path / "cast.tar", size=16)
    traced = replace(cast, path=tmp_path / "traced.tar", colour="path", samples=16)
    one, other = rendered(cast, files), rendered(traced, files)
    for mine, theirs in ((one.views, other.views), (one.test_views, other.test_views)):
        assert torch.equal(mine.depth, theirs.depth)
        assert torch.equal(mine.alpha, theirs.alpha)
        inside = (mine.alpha == 1).expand_as(mine.colour)
        assert not torch.equal(mine.colour, theirs.colour)
        assert (mine.colour - theirs.colour)[inside].abs().mean() < 0.03
        assert ((theirs.colour.sum(dim=1) > 0) == (mine.colour.sum(dim=1) > 0)).all()  # no hole, nothing beside it
    assert torch.equal(one.normals, other.normals)
    again = replace(traced, path=tmp_path / "again.tar")
    rendered(again, files, views=9)
    assert again.path.read_bytes() == traced.path.read_bytes()
