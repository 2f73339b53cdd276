"""MLflow shows what the files say: no run twice, none stale, every metric against the number of views."""

import json
import socket
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from threading import Thread

import pytest
from synthetic_results import EVERY, METHODS, OBJECTS, START, VIEWS, row, sweep_rows, write_lines, write_results

from geolrm.failures import BadInput
from geolrm.tracking import mean_metrics, plan, read_records, rebuild

EXPERIMENT = "made-up/smoke"  # the protocol, at the sizes of this preset


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    """One migrated SQLite store with the made-up results in it (the migration takes seconds)."""
    folder = tmp_path_factory.mktemp("tracking")
    results = write_results(folder / "results" / "smoke")
    uri = f"sqlite:///{folder}/mlflow.db"
    assert rebuild(results, uri).written == 2 + len(METHODS)
    from mlflow import MlflowClient

    return results, uri, MlflowClient(uri)


def runs(client, experiment: str) -> dict:
    found = client.search_runs([client.get_experiment_by_name(experiment).experiment_id], max_results=1000)
    names = [run.info.run_name for run in found]
    assert len(names) == len(set(names)), f"a run is there twice: {names}"
    return {run.info.run_name: run for run in found}


def test_a_second_rebuild_writes_nothing_and_keeps_every_run(store):
    results, uri, client = store
    before = runs(client, EXPERIMENT)
    done = rebuild(results, uri)
    assert (done.written, done.removed) == (0, 0)
    after = runs(client, EXPERIMENT)
    assert {name: run.info.run_id for name, run in after.items()} == {n: r.info.run_id for n, r in before.items()}
    assert len(after) == len(METHODS) * (1 + len(VIEWS))


def test_a_sweeps_metric_has_the_view_counts_as_steps(store):
    _, _, client = store
    parent = runs(client, EXPERIMENT)["geolrm on procedural"]
    history = client.get_metric_history(parent.info.run_id, "psnr_foreground")
    expected = {v: sum(row("geolrm", key, v)["psnr_foreground"] for key in OBJECTS) / len(OBJECTS) for v in VIEWS}
    assert {point.step: point.value for point in history} == pytest.approx(expected)


def test_a_sweeps_metric_is_drawn_against_time_and_memory_too(store):
    _, _, client = store
    parent = runs(client, EXPERIMENT)["geolrm on procedural"]
    for name in ("psnr_foreground", "cd_sum", "stages/reconstruction"):
        by_views = [p.value for p in sorted(client.get_metric_history(parent.info.run_id, name), key=lambda p: p.step)]
        for group, steps in (("by milliseconds", [180, 260, 420, 520]), ("by MiB", [340, 380, 460, 510])):
            history = client.get_metric_history(parent.info.run_id, f"{group}/{name}")
            assert {p.step: p.value for p in history} == dict(zip(steps, by_views, strict=True))


def test_a_run_lasted_as_long_as_its_rows_took_and_methods_keep_their_order(store):
    results, _, client = store
    found = runs(client, EXPERIMENT)

    def lasted(name: str) -> float:
        return (found[name].info.end_time - found[name].info.start_time) / 1000

    def took(rows: list[dict]) -> float:
        return sum(made["latency_s"] * made["latency_runs"] + made["harness_s"] for made in rows)

    rows = [made for made in sweep_rows() if made["method"] == "geolrm"]
    assert lasted("geolrm on procedural") == pytest.approx(took(rows), abs=0.002)
    of_four = [made for made in rows if made["views"] == 4]
    assert lasted("geolrm on procedural, 4 views") == pytest.approx(took(of_four), abs=0.002)
    parents = [found[f"{method} on procedural"].info for method in METHODS]
    assert sorted(parents, key=lambda info: -info.start_time) == parents
    written = (results / "sweep" / "procedural" / "rows.jsonl").stat().st_mtime
    assert all(info.end_time <= 1000 * written for info in parents)


def test_a_run_is_found_by_commit_machine_data_set_and_checkpoint(store):
    _, _, client = store
    experiment = client.get_experiment_by_name(EXPERIMENT).experiment_id

    def found(query: str) -> set[str]:
        return {run.info.run_name for run in client.search_runs([experiment], query)}

    every = set(runs(client, EXPERIMENT))
    assert found(f"tags.commit = '{'c' * 40}'") == found("tags.machine LIKE '%made-up processor'") == every
    assert found("tags.dataset = 'procedural' and tags.method = 'white' and tags.views = '4'") == {
        "white on procedural, 4 views"
    }
    assert found(f"tags.dataset_hash = '{'d' * 64}'") == found(f"tags.checkpoint_hash = '{'e' * 64}'") == every
    assert found(f"tags.checkpoint_hash = '{'f' * 64}'") == found("tags.commit = 'none'") == set()
    training = client.get_experiment_by_name("smoke/training").experiment_id
    (run, _) = client.search_runs([training], f"tags.checkpoint_hash = '{'a' * 64}'")
    assert run.data.tags["machine"] == "cpu, made-up processor"


def test_the_same_protocol_at_its_own_sizes_is_one_experiment_for_all_presets_and_each_keeps_its_runs(store, tmp_path):
    _, uri, client = store
    for preset in ("one", "two"):
        made = row("white", OBJECTS[0], 4)
        made["passport"] = made["passport"] | {"deviations": []}
        write_lines(tmp_path / preset / "sweep" / "procedural" / "rows.jsonl", [made])
        rebuild(tmp_path / preset, uri)
    found = client.search_runs([client.get_experiment_by_name("made-up").experiment_id])
    assert sorted(run.data.tags["preset"] for run in found) == ["one", "one", "two", "two"]


def test_a_server_that_is_down_is_said_with_the_command_that_makes_up_for_it(tmp_path):
    results = write_results(tmp_path / "smoke")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        uri = f"http://127.0.0.1:{free.getsockname()[1]}"
    with pytest.raises(BadInput, match=f"pipelines.report --tracking-uri {uri}") as caught:
        rebuild(results, uri)
    assert caught.value.reason == "tracking_server_down"
    assert "nothing is lost" in str(caught.value)


def test_a_server_that_goes_down_in_the_middle_is_said_likewise(tmp_path, monkeypatch):
    """It answers once, that it is well, and never again."""
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")

    class Once(BaseHTTPRequestHandler):
        def do_GET(self):
            self.send_response(200)
            self.end_headers()

        def log_message(self, *_):
            pass

    with HTTPServer(("127.0.0.1", 0), Once) as server:
        answering = Thread(target=server.handle_request)
        answering.start()
        uri = f"http://127.0.0.1:{server.server_port}"
        server.timeout = 30
        monkeypatch.setattr(
            "geolrm.tracking._experiments_of", lambda client: (answering.join(), server.server_close(), _ask(client))
        )
        with pytest.raises(BadInput, match="tracking_server_down"):
            rebuild(write_results(tmp_path / "smoke"), uri)


def _ask(client):
    return client.search_experiments()


def test_children_hang_under_their_method(store):
    _, _, client = store
    found = runs(client, EXPERIMENT)
    child = found["white on procedural, 21 views"]
    assert child.data.tags["mlflow.parentRunId"] == found["white on procedural"].info.run_id
    assert child.data.params["input_views"].startswith("[0, 1, 2")


def test_a_null_metric_is_absent_rather_than_zero(store):
    _, _, client = store
    assert "lpips_alex" not in runs(client, EXPERIMENT)["geolrm on procedural"].data.metrics


def test_splats_meshes_pictures_and_tables_are_artifacts(store):
    _, _, client = store
    found = runs(client, EXPERIMENT)
    child = found["geolrm on procedural, 8 views"].info.run_id
    assert {a.path for a in client.list_artifacts(child)} >= {"objects.json", OBJECTS[0]}
    files = {a.path.removeprefix(OBJECTS[0] + "/") for a in client.list_artifacts(child, OBJECTS[0])}
    assert files == {
        *("input.png", "truth.png", "render.png", "error.png", "turntable.webm", "gaussians.ply", "mesh.glb")
    }
    strips = [
        a.path
        for a in client.list_artifacts(found["geolrm on procedural"].info.run_id, "images")
        if a.path.endswith(".png")
    ]
    assert len(strips) == 2 * len(VIEWS)  # two objects with pictures


def test_how_busy_the_machine_was_is_a_system_metric_of_methods_and_trainings_at_its_own_time(store):
    _, _, client = store
    name = "system/cpu_utilization_percentage"  # what MLflow itself calls it, so that its own tab shows it
    sweep, training = runs(client, EXPERIMENT), runs(client, "smoke/training")
    history = client.get_metric_history(sweep["geolrm on procedural"].info.run_id, name)
    assert [(p.step, p.value, p.timestamp) for p in history] == [
        (i, 50.0 + i, 1000 * (START + EVERY * i)) for i in range(3)
    ]
    assert name not in sweep["white on procedural"].data.metrics  # it has no such file
    thinned = client.get_metric_history(training["smoke proposal"].info.run_id, name)
    assert [p.value for p in thinned] == [50.0 + i for i in range(0, 1200, 3)]  # of 1,200 samples at most 500


def test_the_table_of_objects_opens_as_mlflows_own(store, monkeypatch):
    _, uri, client = store
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)  # load_table asks the global store
    parent = runs(client, EXPERIMENT)["geolrm on procedural"]
    frame = client.load_table(parent.info.experiment_id, "objects.json", [parent.info.run_id])
    assert len(frame) == len(OBJECTS) * len(VIEWS)
    assert {"object", "views", "psnr_foreground", "lpips_alex", "status"} <= set(frame.columns)
    assert frame["lpips_alex"].isna().all()


def test_training_has_losses_validation_parameters_and_pictures(store):
    results, _, client = store
    run = runs(client, "smoke/training")["smoke reconstruction"]
    steps = read_records(results / "reconstruction" / "steps.jsonl")
    history = client.get_metric_history(run.info.run_id, "loss")
    assert [(p.step, p.value) for p in history] == [(s["step"], s["loss"]) for s in steps if "loss" in s]
    assert history[-1].timestamp - history[0].timestamp == pytest.approx(499 * 250, abs=2)  # step_s, in ms
    assert "validation/loss" in run.data.metrics
    assert run.data.params["optimisation.learning_rate"] == "0.001"
    assert {run.data.tags[name] for name in ("preset", "stage", "device")} == {"smoke", "reconstruction", "cpu"}
    assert run.data.tags["checkpoint_hash"] == "a" * 64
    assert run.data.tags["commit"] == "c" * 40
    assert any(a.path.endswith(".png") for a in client.list_artifacts(run.info.run_id, "images"))


def test_a_changed_row_replaces_its_method_and_no_other_run(store):
    results, uri, client = store
    before = runs(client, EXPERIMENT)
    file = results / "sweep" / "procedural" / "rows.jsonl"
    original = file.read_text()
    rows = sweep_rows()
    rows[0]["psnr_foreground"] = 40.0
    write_lines(file, rows)
    done = rebuild(results, uri)
    assert (done.written, done.removed) == (1, 1)
    after = runs(client, EXPERIMENT)
    changed = {name for name in after if after[name].info.run_id != before[name].info.run_id}
    assert changed == {"geolrm on procedural", *(f"geolrm on procedural, {views} views" for views in VIEWS)}
    assert not Path(before["geolrm on procedural"].info.artifact_uri.removeprefix("file://")).exists()
    file.write_text(original)
    rebuild(results, uri)


def test_a_run_cut_short_is_replaced(store):
    results, uri, client = store
    run = runs(client, "smoke/training")["smoke proposal"]
    client.set_tag(run.info.run_id, "geolrm.content", "")  # as it stands until the last call
    done = rebuild(results, uri)
    assert (done.written, done.removed) == (1, 1)
    assert runs(client, "smoke/training")["smoke proposal"].info.run_id != run.info.run_id


def test_a_run_is_known_as_ours_from_its_first_moment(store, monkeypatch):
    """A rebuild that is killed right after it made a run leaves nothing behind that the next one does not replace."""
    results, uri, client = store
    run = runs(client, "smoke/training")["smoke proposal"]
    client.delete_run(run.info.run_id)

    class Killed(Exception):
        pass

    def killed(*_, **__):
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr("mlflow.MlflowClient.log_batch", killed)
        with pytest.raises(Killed):
            rebuild(results, uri)
    assert rebuild(results, uri).removed == 1
    assert "smoke proposal" in runs(client, "smoke/training")  # once


def test_runs_made_by_others_stay(store):
    results, uri, client = store
    experiment = client.get_experiment_by_name("smoke/training").experiment_id
    mine = client.create_run(experiment, run_name="by hand")
    rebuild(results, uri)
    assert client.get_run(mine.info.run_id).info.lifecycle_stage == "active"
    client.delete_run(mine.info.run_id)


def test_a_removed_sweep_leaves_the_dashboard(store, tmp_path):
    results, uri, client = store
    extra = results / "sweep" / "extra" / "rows.jsonl"
    write_lines(extra, [row("white", OBJECTS[0], 4, "extra")])
    rebuild(results, uri)
    assert {"white on extra", "white on extra, 4 views"} <= set(runs(client, EXPERIMENT))
    extra.unlink()
    rebuild(results, uri)
    assert not [name for name in runs(client, EXPERIMENT) if "extra" in name]


def test_a_corrupt_line_is_named_with_file_and_number(tmp_path):
    file = tmp_path / "rows.jsonl"
    file.write_text('{"a": 1}\n\n{"a": 2\n')
    with pytest.raises(BadInput, match=r"rows\.jsonl:3") as caught:
        read_records(file)
    assert caught.value.reason == "record_corrupt"
    file.write_text("[1, 2]\n")
    with pytest.raises(BadInput, match=r"rows\.jsonl:1.*got list"):
        read_records(file)


def test_a_line_that_is_still_being_written_is_left_out(tmp_path):
    file = tmp_path / "rows.jsonl"
    file.write_text('{"a": 1}\n{"a": 2')
    assert read_records(file) == [{"a": 1}]


def test_no_results_is_said_before_a_store_is_made(tmp_path):
    with pytest.raises(BadInput, match="dvc repro"):
        rebuild(tmp_path / "smoke", f"sqlite:///{tmp_path}/mlflow.db")
    assert not (tmp_path / "mlflow.db").exists()


def test_geometry_from_mesh_and_from_depth_is_never_averaged_together():
    rows = [row("geolrm", OBJECTS[0], 4, surface="mesh"), row("geolrm", OBJECTS[1], 4, surface="depth")]
    rows[1]["status"] = "failed"
    means = mean_metrics(rows)
    assert means["cd_sum/mesh"] == rows[0]["cd_sum"]
    assert means["cd_sum/depth"] == rows[1]["cd_sum"]
    assert "cd_sum" not in means
    assert means["objects/failed"] == 1


def test_content_changes_with_a_picture(tmp_path):
    results = write_results(tmp_path / "smoke")
    before = plan(results)["smoke/training"][0].content()
    assert before == plan(results)["smoke/training"][0].content()
    (results / "proposal" / "pictures" / "step-000100.png").write_bytes(b"other")
    assert plan(results)["smoke/training"][0].content() != before
    assert json.loads((results / "proposal" / "checkpoint.json").read_text())["config"]["max_anchors"] == 1024
