"""While work runs, the machine is watched: at the pace asked for, going on where an earlier watch ended, never in the way."""

import json
import sys
import time
from types import SimpleNamespace

import pytest

from geolrm import monitor
from geolrm.monitor import sample, watched
from geolrm.tracking import read_records

ALWAYS = {
    *("time", "cpu_utilization_percentage", "system_memory_usage_megabytes", "system_memory_usage_percentage"),
    "process_memory_megabytes",
}


def test_there_is_a_line_every_so_often_and_one_at_the_end(tmp_path):
    file, begun = tmp_path / "a" / "system.jsonl", time.time()
    with watched(file, fresh=True, every=0.02):
        while len(read_records(file) if file.exists() else []) < 3:
            time.sleep(0.01)
        seen = len(read_records(file))
    lines = read_records(file)
    assert len(lines) > seen  # the last one when the block ended
    assert all(set(line) >= ALWAYS for line in lines)
    times = [line["time"] for line in lines]
    assert times == sorted(times)
    assert begun - 0.1 < times[0] <= times[-1] < time.time() + 0.1
    assert all(0 <= line["cpu_utilization_percentage"] <= 100 for line in lines)
    assert lines[0]["process_memory_megabytes"] > 1


def test_it_goes_on_after_a_line_that_was_cut_short_or_begins_anew(tmp_path):
    file = tmp_path / "system.jsonl"
    file.write_text('{"time": 1.0}\n{"time": 2.0, "cpu')
    with watched(file, fresh=False):
        pass
    first, last = read_records(file)
    assert first == {"time": 1.0}
    assert set(last) >= ALWAYS
    with watched(file, fresh=True):
        pass
    (only,) = read_records(file)
    assert only["time"] >= last["time"]


def test_a_file_that_cannot_be_written_is_said_and_the_work_goes_on(tmp_path, capsys):
    (tmp_path / "system.jsonl").mkdir()
    done = False
    with watched(tmp_path / "system.jsonl", fresh=True):
        done = True
    assert done
    assert "no more system metrics" in "".join(capsys.readouterr())


def test_an_error_of_the_work_is_its_own_and_its_last_line_is_written(tmp_path):
    with pytest.raises(ZeroDivisionError), watched(tmp_path / "system.jsonl", fresh=True):
        1 / 0  # noqa: B018
    assert len(read_records(tmp_path / "system.jsonl")) == 1


class NVMLError(Exception):
    pass


def fake_nvml(**changes) -> SimpleNamespace:
    """Two GPUs, the second of which, a slice, does not tell its use."""

    def use(handle):
        if handle == "second":
            raise NVMLError("not supported")
        return SimpleNamespace(gpu=87)

    calls = {
        "NVMLError": NVMLError,
        "nvmlInit": lambda: None,
        "nvmlDeviceGetCount": lambda: 2,
        "nvmlDeviceGetHandleByIndex": lambda i: ("first", "second")[i],
        "nvmlDeviceGetUtilizationRates": use,
        "nvmlDeviceGetMemoryInfo": lambda handle: SimpleNamespace(used=3e9),
        "nvmlDeviceGetPowerUsage": lambda handle: 321_000,
    }
    return SimpleNamespace(__spec__=SimpleNamespace(), **calls | changes)


def test_a_gpu_tells_its_use_memory_and_watts_as_far_as_it_can(monkeypatch):
    monkeypatch.setitem(sys.modules, "pynvml", fake_nvml())
    line = sample(monitor.gpus())
    assert set(line) - ALWAYS == {
        *("gpu_0_utilization_percentage", "gpu_0_memory_usage_megabytes", "gpu_0_power_usage_watts"),
        *("gpu_1_memory_usage_megabytes", "gpu_1_power_usage_watts"),
    }
    assert (line["gpu_0_utilization_percentage"], line["gpu_0_memory_usage_megabytes"]) == (87, 3000)
    assert line["gpu_1_power_usage_watts"] == 321
    assert json.loads(json.dumps(line)) == line


def test_without_a_driver_there_are_no_gpus(monkeypatch):
    def no_driver():
        raise NVMLError("driver not loaded")

    monkeypatch.setitem(sys.modules, "pynvml", fake_nvml(nvmlInit=no_driver))
    assert monitor.gpus() == []
