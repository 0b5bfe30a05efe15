"""Fine-tune a language model larger than any of the devices: LoRA by peft, over two of them.

The base weights are frozen. They have no gradient and no state of the optimizer, and what comes
before the first adapter keeps nothing for a backward. So two devices train what neither could hold,
and what would take four times as much if all of it trained:

    pip install peft
    python examples/lora.py adapter/

`--steps` and `--layers` say how many. Then the adapter lies in the folder under its own names,
as `PeftModel.from_pretrained` reads it, and the merged model infers.
"""

import argparse
from pathlib import Path

import peft
import torch
from torch import Tensor
from torch.nn import functional
from transformers import LlamaConfig, LlamaForCausalLM

import skyfx

BATCH, TOKENS, WORDS = 8, 16, 2000


def adapted(layers: int) -> peft.PeftModel:
    """A Llama with adapters on queries and values; with `from_pretrained` it would be yours."""
    config = LlamaConfig(
        hidden_size=512,
        intermediate_size=1376,
        num_hidden_layers=layers,
        num_attention_heads=8,
        num_key_value_heads=4,
        vocab_size=WORDS,
        use_cache=False,
    )
    lora = peft.LoraConfig(r=8, target_modules=["q_proj", "v_proj"], lora_dropout=0.1)
    return peft.get_peft_model(LlamaForCausalLM(config), lora)


def data() -> dict[str, Tensor]:
    """One batch of sequences that count up, each from a word of its own."""
    first = torch.randint(0, WORDS, (BATCH, 1))
    return {"input_ids": (first + torch.arange(TOKENS)) % WORDS}


def loss_fn(outputs: object, words: Tensor) -> Tensor:
    """How well each word foretells the next."""
    logits = outputs.logits[:, :-1]  # type: ignore[attr-defined]
    return functional.cross_entropy(logits.flatten(0, 1), words[:, 1:].flatten())


def main() -> None:
    """Plan within the limits, train, save the adapter, merge it."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path, help="where the adapter is saved")
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--layers", type=int, default=8)
    options = parser.parse_args()
    torch.manual_seed(0)
    model, batch = adapted(options.layers), data()
    whole = sum(x.nbytes for x in model.parameters())
    trains = sum(x.nbytes for x in model.parameters() if x.requires_grad)
    # Neither holds the model. Together they hold it once, where training all of it takes it four
    # times: weights, gradients and two states of AdamW.
    limits = [0.65 * whole, 0.9 * whole]
    print(f"{whole / 2**20:.0f} MiB of weights, {trains / 2**20:.1f} of them train")
    devices = [skyfx.Device("cpu", memory_bytes=limit) for limit in limits]
    with skyfx.partition(model, devices, example_inputs=batch, num_microbatches=4) as pipeline:
        print(pipeline.plan)
        mine = [x for x in pipeline.parameters() if x.requires_grad]
        optimizer = torch.optim.AdamW(mine, lr=5e-3)
        for step in range(options.steps):
            loss = pipeline.train_step(batch, batch["input_ids"], loss_fn)
            optimizer.step()
            optimizer.zero_grad()
            print(f"step {step}  loss {loss.item():.4f}")
        model.load_state_dict(pipeline.state_dict())
    model.save_pretrained(str(options.folder))
    print(f"saved {sorted(path.name for path in options.folder.iterdir())}")
    merged = model.merge_and_unload().eval()
    with torch.no_grad():
        loss = loss_fn(merged(**batch), batch["input_ids"])
    print(f"merged, loss {loss.item():.4f}")


if __name__ == "__main__":
    main()
