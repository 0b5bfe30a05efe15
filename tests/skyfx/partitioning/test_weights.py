"""A model without weights is captured, measured and planned; each stage then reads its own."""

from pathlib import Path

import pytest
import torch
import transformers
from safetensors.torch import save_file
from torch import nn

import skyfx
from skyfx.partitioning.weights import Weights
from skyfx.solver.errors import PlanError
from skyfx.tracing.capture import capture
from tests.support import unsplit_reference
from tests.support.plans import even_plan

TWO = ["cpu", "cpu"]


def llama(*, tied: bool = False) -> nn.Module:
    config = transformers.LlamaConfig(
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=1,
        num_attention_heads=4,
        num_key_value_heads=2,
        vocab_size=100,
        use_cache=False,
        tie_word_embeddings=tied,
    )
    return transformers.LlamaForCausalLM(config)


def empty(*, tied: bool = False) -> nn.Module:
    with skyfx.empty_weights():
        return llama(tied=tied)


BATCH = {"input_ids": torch.arange(48).reshape(4, 12)}


def test_without_weights_there_are_buffers_and_no_parameters_values() -> None:
    model, real = empty(), llama()
    assert all(x.is_meta for x in model.parameters())
    for (name, found), expected in zip(model.named_buffers(), real.buffers(), strict=True):
        assert torch.equal(found, expected), name
    assert [n for n, _ in model.named_parameters()] == [n for n, _ in real.named_parameters()]
    with skyfx.empty_weights():
        made = nn.Linear(2, 2, bias=False)
    assert made.weight.is_meta
    assert made.bias is None
    assert not any(x.is_meta for x in nn.Linear(2**11, 2**11).parameters())


@pytest.mark.slow
@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("mode", ["training", "inference"])
def test_stages_read_their_tensors_from_shards_by_their_names(
    tmp_path: Path, mode: str, tied: bool
) -> None:
    real = llama(tied=tied).eval()
    real.save_pretrained(tmp_path, max_shard_size="20KB")
    assert len([*tmp_path.glob("*.safetensors")]) > 1
    model = empty(tied=tied)
    with skyfx.partition(
        model, TWO, example_inputs=BATCH, weights=tmp_path, mode=mode, num_microbatches=2
    ) as pipeline:
        found = unsplit_reference.tensors(pipeline(BATCH))
        with torch.no_grad():
            expected = [real(BATCH["input_ids"][i : i + 2]).logits for i in (0, 2)]
        assert torch.equal(found[0], torch.cat(expected))
        state = pipeline.state_dict()
    assert state.keys() == real.state_dict().keys()
    assert all(torch.equal(state[name], x) for name, x in real.state_dict().items())


def test_a_model_on_the_meta_device_is_planned_but_its_buffers_are_nowhere(tmp_path: Path) -> None:
    llama().save_pretrained(tmp_path)
    with torch.device("meta"):
        model = llama()
    plan = even_plan(capture(model, {"input_ids": BATCH["input_ids"][:1].to("meta")}), 2)
    assert len(plan.stages) == 2
    with pytest.raises(PlanError, match=r"buffer '.*inv_freq' has no values.*empty_weights\(\)"):
        skyfx.partition(model, TWO, example_inputs=BATCH, plan=plan, weights=tmp_path)


def test_without_weights_nothing_can_run() -> None:
    plan = even_plan(capture(empty(), {"input_ids": BATCH["input_ids"][:1].to("meta")}), 2)
    with pytest.raises(PlanError, match=r"has no values, .* pass weights="):
        skyfx.partition(empty(), TWO, example_inputs=BATCH, plan=plan)


def test_wrong_files_say_what_is_wrong(tmp_path: Path) -> None:
    with pytest.raises(PlanError, match=r"holds no file whose name ends in \.safetensors"):
        Weights(tmp_path)
    (tmp_path / "a.safetensors").write_bytes(b"nonsense")
    with pytest.raises(PlanError, match=r"a.safetensors cannot be read as safetensors"):
        Weights(tmp_path)
    with pytest.raises(PlanError, match=r"missing.safetensors cannot be read"):
        Weights(tmp_path / "missing.safetensors")
    save_file({"weight": torch.ones(2, 3)}, tmp_path / "a.safetensors")
    weights = Weights(tmp_path / "a.safetensors")
    cpu = torch.device("cpu")
    assert torch.equal(weights.read(["weight"], torch.ones(2, 3).half(), cpu), torch.ones(2, 3))
    with pytest.raises(PlanError, match=r"'weight' has shape \(2, 3\), the model's \(3, 2\)"):
        weights.read(["weight"], torch.ones(3, 2), cpu)
    with pytest.raises(PlanError, match=r"has no tensor 'bias'; it has 1, such as 'weight'"):
        weights.read(["bias"], torch.ones(3), cpu)
    weights.close()
