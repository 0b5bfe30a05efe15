"""Links of a cluster that exists nowhere: what goes over them takes its time, there and back."""

from dataclasses import replace

import pytest
import torch
from torch import nn
from torch.nn import functional

import skyfx
from skyfx.runtime.batches.microbatch import Batch
from skyfx.runtime.transport.local import BoundedQueue, ChannelClosed
from skyfx.solver.core.cluster import Cluster, Device, Link, Wire
from skyfx.tracing.capture import capture
from tests.support import unsplit_reference
from tests.support.models import BATCH, Case
from tests.support.plans import NUM_MICROBATCHES, SIZE, even_plan

FEATURES = 1000
LATENCY_S, RATE = 0.01, 1e6
THERE_S = LATENCY_S + SIZE * FEATURES * 4 / RATE
BACK_S = 2 * LATENCY_S + SIZE * FEATURES * 4 / (2 * RATE)


def test_values_and_gradients_arrive_no_sooner_than_over_such_links() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(*(nn.Linear(FEATURES, FEATURES) for _ in range(4)))
    case = Case(
        model, torch.randn(BATCH, FEATURES), torch.zeros(BATCH, FEATURES), functional.mse_loss
    )
    alone = unsplit_reference.unsplit(case)
    plan = even_plan(capture(model, Batch.of(case.batch).split(SIZE)[0]), 2)
    there = Link(source="cpu:0", target="cpu:1", bandwidth_bytes_per_s=RATE, latency_s=LATENCY_S)
    back = replace(
        there,
        source="cpu:1",
        target="cpu:0",
        bandwidth_bytes_per_s=2 * RATE,
        latency_s=2 * LATENCY_S,
    )
    cluster = Cluster(
        devices=tuple(Device(name=f"cpu:{d}", type="cpu") for d in range(2)),
        links=(there, back),
        emulated_links=True,
    )
    with skyfx.partition(model, cluster, example_inputs=case.batch, plan=plan) as pipeline:
        loss = pipeline.train_step(case.batch, case.targets, case.loss_fn)
        assert torch.equal(loss, unsplit_reference.train_step(alone, SIZE))
        found = pipeline.profile(case.batch, case.targets, case.loss_fn, steps=1).timeline
    at = {
        (done.action.stage, done.action.kind.value, done.action.microbatch): done for done in found
    }
    for m in range(NUM_MICROBATCHES):
        sent, received = at[0, "forward", m], at[1, "forward", m]
        assert received.began_s - sent.ended_s >= THERE_S
        sent, received = at[1, "backward", m], at[0, "backward", m]
        assert received.began_s - sent.ended_s >= BACK_S


def test_a_link_carries_one_item_after_the_other_and_lets_go_at_the_end() -> None:
    channel = BoundedQueue[list[torch.Tensor]](4, Wire(bandwidth_bytes_per_s=4e5, latency_s=0.0))
    began = torch.ones(10_000)  # 0.1 s each
    for _ in range(3):
        channel.put([began])
    assert [len(channel.get()) for _ in range(2)] == [1, 1]
    channel.close()
    with pytest.raises(ChannelClosed):
        channel.get()
