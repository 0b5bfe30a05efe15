"""Wrong arguments are refused in one line, before a model is captured or measured."""

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import skyfx
from skyfx.api import capture_and_measure
from skyfx.devices.resolve import resolve
from skyfx.solver.errors import PlanError
from skyfx.tracing.capture import capture

CPU = ["cpu", "cpu"]


def layers() -> nn.Module:
    return nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 4))


@pytest.fixture
def unreached(monkeypatch: pytest.MonkeyPatch) -> None:
    """Capturing and measuring fail the test."""

    def reached(*_: Any, **__: Any) -> None:
        pytest.fail("the model was captured or measured before the arguments were checked")

    monkeypatch.setattr("skyfx.verification.cut_decision.capture", reached)
    monkeypatch.setattr("skyfx.verification.cut_decision.samples_apart", reached)
    monkeypatch.setattr("skyfx.measurement.measure.priced", reached)


def refused(error: type[Exception], message: str, call: Any) -> None:
    with pytest.raises(error, match=message) as raised:
        call()
    assert "\n" not in str(raised.value)


@pytest.mark.usefixtures("unreached")
@pytest.mark.parametrize(
    ("devices", "options", "error", "message"),
    [
        (CPU, {"gap": -0.1}, ValueError, "gap: found -0.1, expected a finite number >= 0"),
        (CPU, {"gap": "1%"}, ValueError, "gap: found '1%', expected a finite number >= 0"),
        (CPU, {"gap": math.nan}, ValueError, "gap: found nan, expected"),
        (CPU, {"time_limit_s": -1}, ValueError, "time_limit_s: found -1, expected"),
        (CPU, {"time_limit_s": None}, ValueError, "time_limit_s: found None, expected"),
        (CPU, {"num_microbatches": 0}, ValueError, "num_microbatches: found 0, expected .* >= 1"),
        (CPU, {"num_microbatches": 2.5}, ValueError, "num_microbatches: found 2.5, expected a who"),
        (CPU, {"num_microbatches": True}, ValueError, "num_microbatches: found True, expected"),
        (CPU, {"optimizer_state_ratio": -1}, ValueError, "optimizer_state_ratio: found -1"),
        (CPU, {"pins": "0=cpu:0"}, ValueError, "pins: found '0=cpu:0', expected a list of texts"),
        (CPU, {"pins": ["0"]}, ValueError, "pins.0.: found '0', expected PATTERN=DEVICE or"),
        (
            CPU,
            {"pins": ["0=cpu:2"]},
            ValueError,
            r"pin '0=cpu:2': no device 'cpu:2' \(cpu:0, cpu:1\); did you mean 'cpu:1' or 'cpu:0'\?",
        ),
        (CPU, {"batch_dims": True}, ValueError, "batch_dims is True, expected a dimension"),
        (CPU, {"batch_dims": {"y": 0}}, ValueError, "batch_dims names 'y', which is no argument"),
        (CPU, {"target_dims": "all"}, ValueError, "target_dims is 'all', expected a dimension"),
        (CPU, {"mode": "fun"}, ValueError, "mode is 'fun', expected 'training' or 'inference'"),
        (CPU, {"objective": "fun"}, ValueError, "objective is 'fun', expected .*'throughput'"),
        (CPU, {"strategy": "fun"}, ValueError, "strategy is 'fun', expected .*'optimal'"),
        (
            CPU,
            {"schedule": "zigzag"},
            ValueError,
            "schedule is 'zigzag', expected 'gpipe', '1f1b', 'generated', 'tapered' or "
            "'interleaved'",
        ),
        (CPU, {"weights": "no.safetensors"}, PlanError, "no.safetensors cannot be read as safet"),
        ([], {}, ValueError, "devices is empty, expected at least one"),
        (["tpu!"], {}, PlanError, "no device 'tpu!' on this machine; it has cpu"),
        ([skyfx.Device("cpu", slowdown=0)], {}, ValueError, "slowdown: found 0, expected .* > 0"),
        ([skyfx.Device("cpu", slowdown="2")], {}, ValueError, "slowdown: found '2', expected"),
        ([skyfx.Device("cpu", slowdown=math.nan)], {}, ValueError, "slowdown: found nan, expecte"),
        (
            ["cpu", skyfx.Device("cpu", memory_bytes="4 apples")],
            {},
            ValueError,
            r"devices\[1\].memory_bytes: found '4 apples', expected a value such as 2GiB",
        ),
    ],
)
def test_arguments_of_partition_are_checked_first(
    devices: Any, options: dict[str, Any], error: type[Exception], message: str
) -> None:
    inputs = torch.ones(8, 4)
    refused(
        error,
        message,
        lambda: skyfx.partition(layers(), devices, example_inputs=inputs, **options),
    )


@pytest.mark.usefixtures("unreached")
def test_files_and_folders_are_checked_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "file"
    file.write_text("not safetensors")

    def partition(**options: Any) -> None:
        skyfx.partition(layers(), CPU, example_inputs=torch.ones(8, 4), **options)

    refused(PlanError, "file cannot be read as safetensors", lambda: partition(weights=file))
    refused(PlanError, r"holds no file .* \.safetensors", lambda: partition(weights=tmp_path))
    for keep in (file, file / "below"):
        refused(ValueError, "keep: found '.*', expected a folder", lambda k=keep: partition(keep=k))
    monkeypatch.setenv("SKYFX_CACHE", str(file))
    refused(ValueError, "SKYFX_CACHE: found '.*file', expected a folder to write to", partition)
    places = resolve(CPU)[1].values()
    refused(
        ValueError,
        "SKYFX_CACHE: found",
        lambda: capture_and_measure(layers(), places, example_inputs=torch.ones(8, 4)),
    )


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"mode": "fun"}, "mode is 'fun', expected 'training' or 'inference'"),
        ({"num_microbatches": 2.5}, "num_microbatches: found 2.5, expected a whole number >= 1"),
    ],
)
@pytest.mark.usefixtures("unreached")
def test_arguments_of_capturing_and_measuring_are_checked_first(
    options: dict[str, Any], message: str
) -> None:
    places = resolve(["cpu"])[1].values()
    inputs = torch.ones(8, 4)
    refused(
        ValueError,
        message,
        lambda: capture_and_measure(layers(), places, example_inputs=inputs, **options),
    )


def test_a_pattern_that_matches_nothing_is_refused_before_anything_is_measured(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def reached(*_: Any, **__: Any) -> None:
        pytest.fail("the model was measured before the pins were checked")

    monkeypatch.setattr("skyfx.measurement.measure.priced", reached)
    refused(
        ValueError,
        "pin 'encoder=cpu': 'encoder' matches no node and no module; did you mean '",
        lambda: skyfx.partition(
            layers(), ["cpu"], example_inputs=torch.ones(8, 4), pins=["encoder=cpu"]
        ),
    )


def test_measuring_needs_a_device() -> None:
    captured = capture(layers(), torch.ones(2, 4))
    refused(
        ValueError, "places is empty, expected at least one", lambda: skyfx.measure(captured, [])
    )


@pytest.mark.parametrize(("text", "num_bytes"), [("4GB", 4e9), ("1.5GiB", 1.5 * 2**30), (7, 7)])
def test_memory_is_a_number_or_text_with_a_unit(text: Any, num_bytes: float) -> None:
    cluster, places = resolve([skyfx.Device("cpu", memory_bytes=text)])
    assert cluster.devices[0].memory_bytes == places["cpu"].memory_bytes == num_bytes


def test_any_size_of_memory_can_be_planned_with() -> None:
    devices = [skyfx.Device("cpu", memory_bytes=2**70)] * 2
    with skyfx.partition(layers(), devices, example_inputs=torch.ones(8, 4)) as pipeline:
        assert all(stage.limit_bytes == 2**70 for stage in pipeline.plan.stages)
