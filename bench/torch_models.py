"""PyTorch models on a simulated chip against PyTorch's own float32 on this CPU, and the share of timing.

``python bench/run.py torch``. Both run the same steps of the same model, in turn, on one thread, and the fewest seconds
of that thread count (``time.process_time``: what else the machine does is not in them). "Computing" is the depth
``fast`` without a chip around it; timing is what recording, fusing, pricing and the report add to that, in a run whose
costs are known from one before.
"""

from __future__ import annotations

import importlib.util
import time


def best(functions, repeats):
    """Fewest seconds of each function, run in turn, after one call of each that does not count."""
    times = [[] for _ in functions]
    for repeat in range(repeats + 1):
        for function, taken in zip(functions, times, strict=True):
            start = time.process_time()
            function()
            if repeat:
                taken.append(time.process_time() - start)
    return [min(taken) for taken in times]


def models():
    """(name, what makes the model, its tokens, whether it trains)."""
    import torch
    from transformers import BertConfig, BertForMaskedLM, GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

    llama = LlamaConfig(
        vocab_size=1024,
        hidden_size=1024,
        intermediate_size=2816,
        num_hidden_layers=1,
        num_attention_heads=16,
        num_key_value_heads=8,
    )
    gpt = GPT2Config(
        vocab_size=96, n_embd=192, n_layer=4, n_head=6, n_positions=128, bos_token_id=0, eos_token_id=0, use_cache=False
    )
    bert = BertConfig(
        vocab_size=1024, hidden_size=384, intermediate_size=1536, num_hidden_layers=6, num_attention_heads=12
    )
    return (
        ("Llama, 1 layer of 1024, 512 tokens", lambda: LlamaForCausalLM(llama), torch.randint(0, 1024, (1, 512))),
        ("GPT of 4 layers of 192, 16 x 128 tokens", lambda: GPT2LMHeadModel(gpt), torch.randint(0, 96, (16, 128))),
        ("BERT of 6 layers of 384, 8 x 128 tokens", lambda: BertForMaskedLM(bert), torch.randint(0, 1024, (8, 128))),
    )


def step_of(make, tokens, *, trains, dtype=None):
    """A step of training, or of inference."""
    import torch

    torch.manual_seed(0)
    model = make().to(dtype or torch.float32).train(False)
    optimiser = torch.optim.AdamW(model.parameters(), lr=1e-3)

    def step():
        if not trains:
            with torch.no_grad():
                model(input_ids=tokens)
            return
        optimiser.zero_grad()
        model(input_ids=tokens, labels=tokens).loss.backward()
        optimiser.step()

    return step


def bench_torch(row):
    """``row`` prints a line: name, value, unit, limit, ratio, the most that the ratio may be."""
    for package in ("torch", "transformers"):
        if importlib.util.find_spec(package) is None:
            print(f"torch: skipped, {package} is not installed")
            return
    import torch
    import transformers

    torch.set_num_threads(1)
    transformers.logging.set_verbosity_error()
    for name, make, tokens in models():
        for trains in (False, True):
            what = f"{name}, {'training' if trains else 'forward'}"
            bench_fast(row, what, make, tokens, trains)
    bench_exact(row)


def bench_fast(row, name, make, tokens, trains):
    """``fast`` in each format beside PyTorch eager float32; and what timing adds."""
    import torch
    from torch.utils._python_dispatch import TorchDispatchMode

    import trnsim.torch
    from trnsim.frameworks.torch.fast import FastExecutor

    class Computing(TorchDispatchMode):
        def __init__(self, executor):
            super().__init__()
            self.executor = executor

        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            return self.executor.run(func, args, kwargs or {})

    def within(mode, step):
        def run():
            with mode:
                step()

        return run

    eager = step_of(make, tokens, trains=trains)
    cases = {
        "float32": {"format": "float32"},
        "bf16": {},
        "fp8": {"format": "fp8"},
        "bf16 tensors": {"dtype": torch.bfloat16},
        "bf16 tensors, stochastic": {"dtype": torch.bfloat16, "stochastic_rounding": True},
    }
    for case, options in cases.items():
        step = step_of(make, tokens, trains=trains, dtype=options.pop("dtype", None))
        chip = trnsim.torch.device("trn2", **options)
        base, fast = best([eager, within(chip, step)], 3)
        row(f"{name}, fast {case}", fast * 1e3, "ms", base * 1e3, fast / base, 3.0)
    step = step_of(make, tokens, trains=trains)
    first = trnsim.torch.device("trn2")
    with first:
        step()
    first.report()  # its costs are known from here on

    def timed():
        chip = trnsim.torch.device("trn2")
        with chip:
            step()
            step()
        chip.report()

    def computed():
        with Computing(FastExecutor("bf16")):
            step()
            step()

    alone, both = best([computed, timed], 3)
    row(f"{name}, with timing", both * 1e3, "ms", alone * 1e3, both / alone, 1.1)


def bench_exact(row):
    """A layer in every instruction."""
    import torch
    from transformers import LlamaConfig
    from transformers.models.llama.modeling_llama import LlamaDecoderLayer, LlamaRotaryEmbedding

    import trnsim.torch

    config = LlamaConfig(hidden_size=1024, intermediate_size=2816, num_attention_heads=16, num_key_value_heads=8)
    config._attn_implementation = "sdpa"
    layer, data = LlamaDecoderLayer(config, 0).bfloat16(), torch.randn(1, 512, 1024).bfloat16()
    places = LlamaRotaryEmbedding(config)(data, torch.arange(512)[None])
    for chip in ("trn1", "trn2", "trn3"):
        start = time.perf_counter()
        with torch.no_grad(), trnsim.torch.device(chip, depth="exact") as on:
            layer(data, position_embeddings=places)
        seconds = time.perf_counter() - start
        row(f"Llama layer of 1024, 512 tokens, exact on {chip}", seconds, "s", None, seconds / 30, 1.0)
        fallbacks = sum(on.executor.fallbacks.values())
        print(f"  {sum(on.executor.launches.values())} kernels, {fallbacks} operators without one")
