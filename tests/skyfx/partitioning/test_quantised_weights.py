"""Frozen quantised weights with adapters that train: as in plain torch, and as small as that."""

from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from torch import Tensor
from torch.nn import functional
from transformers import LlamaConfig, LlamaForCausalLM

import skyfx
from skyfx.passes.planner_graph import to_planner_graph
from skyfx.runtime.pytree import parts_of
from skyfx.tracing.capture import capture
from tests.support import unsplit_reference
from tests.support.int8_weights import quantise
from tests.support.models import BATCH, Case
from tests.support.plans import NUM_MICROBATCHES, SIZE, even_plan

WORDS = 100

pytestmark = pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing")  # peft asks for it


def loss_fn(outputs: Any, words: Tensor) -> Tensor:
    return functional.cross_entropy(outputs.logits[:, :-1].flatten(0, 1), words[:, 1:].flatten())


def quantised() -> Case:
    """A Llama of which all layers are quantised, with an adapter on queries and values."""
    torch.manual_seed(0)
    llama = LlamaForCausalLM(
        LlamaConfig(
            hidden_size=64,
            intermediate_size=96,
            num_hidden_layers=1,
            num_attention_heads=2,
            vocab_size=WORDS,
            use_cache=False,
        )
    )
    quantise(llama.model)
    lora = peft.LoraConfig(r=4, target_modules=["q_proj", "v_proj"])
    words = torch.randint(0, WORDS, (BATCH, 6))
    return Case(peft.get_peft_model(llama, lora), {"input_ids": words}, words, loss_fn)


def trained(parameters: Any) -> torch.optim.Optimizer:
    return torch.optim.AdamW([x for x in parameters if x.requires_grad], lr=0.01)


def test_they_train_infer_and_are_saved_as_in_plain_torch(tmp_path: Path) -> None:
    case = quantised()
    alone = unsplit_reference.unsplit(case)
    with skyfx.partition(
        case.model,
        [skyfx.Device("cpu", memory_bytes="200MB")] * 2,
        example_inputs=case.batch,
        num_microbatches=NUM_MICROBATCHES,
        strategy="even",
    ) as pipeline:
        assert len(pipeline.plan.stages) == 2
        ours, theirs = trained(pipeline.parameters()), trained(alone.model.parameters())
        checkpoints = pipeline.checkpoints(tmp_path, optimizer=ours)
        for step in range(2):
            loss = pipeline.train_step(case.batch, case.targets, loss_fn)
            assert torch.equal(loss, unsplit_reference.train_step(alone, SIZE))
            for optimizer in (ours, theirs):
                optimizer.step()
                optimizer.zero_grad()
            if step == 0:
                checkpoints.save(1)
        expected = unsplit_reference.infer(alone, SIZE)[0]
        assert torch.equal(pipeline(case.batch).logits, expected)
        checkpoints.load()  # and the second step again
        pipeline.train_step(case.batch, case.targets, loss_fn)
        ours.step()
        assert torch.equal(pipeline(case.batch).logits, expected)


def test_each_stage_counts_what_its_own_weights_hold() -> None:
    case = quantised()
    graph = to_planner_graph(capture(case.model, case.batch))
    parameters = list(case.model.parameters())
    held = [part for x in parameters for part in parts_of(x)]
    assert sum(x.dtype == torch.int8 for x in held) == 7
    held.append(case.model.get_buffer("base_model.model.model.rotary_emb.inv_freq"))
    of_all = sum(x.nbytes for x in held)
    assert sum(node.parameter_bytes for node in graph.nodes) == of_all
    trains = sum(x.nbytes for x in parameters if x.requires_grad)
    assert sum(node.trained_bytes for node in graph.nodes) == trains
    plan = even_plan(graph, 2)
    kept = {node.id: node.parameter_bytes for node in graph.nodes}
    first, second = (sum(kept[name] for name in stage.nodes) for stage in plan.stages)
    assert 0.2 * of_all < first < 0.8 * of_all  # not all of them with the first operator
    assert first + second == of_all
