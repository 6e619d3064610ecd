"""The tensor-level interface: its options, its refusals, what it computes only once, and use from several threads."""

from __future__ import annotations

from collections import Counter
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from flashjanus import JanusFlow
from flashjanus.engine.runtime.executor import Executor
from flashjanus.errors import PlanError
from flashjanus.execution.text import ImageTokens
from flashjanus.model import FLOW_FORMS
from small_model import (
    END,
    FEATURES,
    IMAGE,
    IMAGE_SIZE,
    LATENT,
    START,
    normal,
    prompt,
    relative_error,
    small_config,
    small_state,
)

TOKENS = ImageTokens(start=START, image=IMAGE)
ROOM = 128 - 1 - 16
"""Positions of the small model without the time token and the image."""


def build(dtype: str = "float32", **options) -> JanusFlow:
    config = small_config()
    return JanusFlow.from_state_dict(config, small_state(config), device="cpu", dtype=dtype, **options)


@pytest.fixture(scope="module")
def model() -> JanusFlow:
    return build()


@pytest.fixture
def runs(monkeypatch) -> Counter:
    """Counts the runs of each program."""
    counts: Counter = Counter()
    run = Executor.run

    def counted(self):
        counts[self.plan.name] += 1
        run(self)

    monkeypatch.setattr(Executor, "run", counted)
    return counts


IDS = torch.tensor([[0, 11, 12, 13, 14], [0, 21, 22, 23, 24]])
WITH_IMAGE = torch.tensor([[0, 5, START, *[IMAGE] * FEATURES, END, 6]])
PIXELS = normal(9, 1, 1, 3, IMAGE_SIZE, IMAGE_SIZE)


def test_generation_computes_prompts_and_time_tokens_once(model, runs):
    model.sample_latents([prompt(1, 5)] * 3, normal(1, 3, *LATENT), num_inference_steps=7)
    assert runs == {"flow_prepare": 1, "flow_step": 7}


def test_decoding_computes_the_prompt_once_and_a_token_a_step(model, runs):
    model.generate_ids(WITH_IMAGE, None, PIXELS, max_new_tokens=9, image_tokens=TOKENS)
    assert runs == {"encode_images": 1, "prefill": 1, "decode_step": 8}


def test_greedy_decoding_equals_repeated_prefill(model):
    ids, expected = WITH_IMAGE, []
    for _ in range(8):
        token = model.next_token_logits(ids, None, PIXELS, TOKENS).argmax(-1, keepdim=True)
        ids = torch.cat([ids, token], 1)
        expected.append(token)
    got = model.generate_ids(WITH_IMAGE, None, PIXELS, max_new_tokens=8, image_tokens=TOKENS)
    assert torch.equal(got, torch.cat(expected, 1))


def test_results_are_the_callers_own(model):
    """A later call of the same bucket does not write into what an earlier one returned."""
    calls = [
        lambda seed: model.next_token_logits(IDS + seed),
        lambda seed: model.encode_images(normal(seed, 2, 3, IMAGE_SIZE, IMAGE_SIZE)),
        lambda seed: model.sample_latents([prompt(seed, 4)], normal(seed, 1, *LATENT), num_inference_steps=2),
        lambda seed: model.generate_ids(IDS + seed, max_new_tokens=3),
    ]
    for call in calls:
        first = call(1)
        kept = first.clone()
        assert not torch.equal(call(2), kept)
        assert torch.equal(first, kept)


def test_inference_mode_and_default_dtype_of_the_caller_do_not_matter(model):
    def work(model: JanusFlow) -> list[torch.Tensor]:
        return [
            model.sample_latents([prompt(1, 4)], noise, num_inference_steps=3),
            model.generate_ids(WITH_IMAGE, None, PIXELS, max_new_tokens=4, image_tokens=TOKENS, do_sample=True, seed=1),
            model.next_token_logits(IDS),
        ]

    noise = normal(1, 1, *LATENT)
    expected = work(model)
    with torch.inference_mode():
        other = build()
        inside = work(other)
    outside = work(other)
    torch.set_default_dtype(torch.bfloat16)
    try:
        in_bfloat16 = work(build())
    finally:
        torch.set_default_dtype(torch.float32)
    for results in (inside, outside, in_bfloat16):
        assert all(torch.equal(a, b) for a, b in zip(results, expected, strict=True))


def test_noise_is_read_not_written(model):
    noise = normal(1, 1, *LATENT).requires_grad_()
    before = noise.detach().clone()
    z1, trace = model.sample_latents([prompt(1, 4)], noise, num_inference_steps=2, trace=True)
    assert torch.equal(noise.detach(), before)
    assert torch.equal(trace[0]["z"], before)
    assert not z1.requires_grad


def test_ids_may_be_lists_or_tensors_and_values_per_row_too(model):
    ids, noise = prompt(1, 4), normal(1, 2, *LATENT)
    lists = model.sample_latents([ids, ids], noise, [2.0, 3.0], [2, 3])
    tensors = model.sample_latents(torch.tensor([ids, ids]), noise, torch.tensor([2.0, 3.0]), torch.tensor([2, 3]))
    assert torch.equal(lists, tensors)


def test_masked_tokens_do_not_count(model):
    alone = model.generate_ids(IDS[:1], max_new_tokens=6)
    for mask in ([0, 0, 1, 1, 1, 1, 1, 0], [0, 1, 1, 0, 1, 1, 1, 0]):
        padded, real = torch.full((1, 8), 50), torch.tensor([mask], dtype=torch.bool)
        padded[real] = IDS[0]
        assert torch.equal(model.generate_ids(padded, real, max_new_tokens=6), alone)


def test_rows_end_at_eos_and_are_filled_with_it(model):
    free = model.generate_ids(IDS, max_new_tokens=8)
    eos = int(free[0, 2])
    assert eos not in free[0, :2].tolist()
    got = model.generate_ids(IDS, max_new_tokens=8, eos_token_id=eos)
    for row in range(2):
        expected = free[row].tolist()
        if eos in expected:
            end = expected.index(eos) + 1
            expected = expected[:end] + [eos] * (8 - end)
        assert got[row].tolist() == expected[: got.shape[1]]
    assert model.generate_ids(IDS[:1], max_new_tokens=8, eos_token_id=eos).tolist() == free[:1, :3].tolist()


def test_decoding_ends_with_the_context(model):
    ids = torch.tensor([prompt(4, 124)])
    assert ids.shape[1] == 125
    tokens = model.generate_ids(ids, max_new_tokens=500)
    assert tokens.shape == (1, 4)  # three fit in the context, and the last is not read back
    assert model.generate_ids(torch.tensor([prompt(4, 127)]), max_new_tokens=500).shape == (1, 1)


def test_a_row_at_the_end_of_the_context_does_not_cut_its_neighbors(model):
    long, short = prompt(4, 124), prompt(5, 9)
    ids = torch.full((2, 125), 3)
    ids[0], ids[1, -10:] = torch.tensor(long), torch.tensor(short)
    mask = torch.ones_like(ids)
    mask[1, :-10] = 0
    both = model.generate_ids(ids, mask, max_new_tokens=30)
    assert both.shape == (2, 30)
    assert torch.equal(both[0, :4], model.generate_ids(ids[:1], max_new_tokens=30)[0])
    assert torch.equal(both[1], model.generate_ids(ids[1:, -10:], max_new_tokens=30)[0])
    assert not both[0, 4:].any()


def test_sampling(model):
    options = dict(max_new_tokens=12, do_sample=True)
    first = model.generate_ids(IDS, seed=3, **options)
    assert torch.equal(first, model.generate_ids(IDS, seed=3, **options))
    assert not torch.equal(first, model.generate_ids(IDS, seed=4, **options))
    # row b draws from seed + b, whatever its neighbors are
    assert torch.equal(first[1:], model.generate_ids(IDS[1:], seed=4, **options))
    greedy = model.generate_ids(IDS, max_new_tokens=12)
    assert not torch.equal(first, greedy)
    assert torch.equal(model.generate_ids(IDS, seed=3, top_k=1, **options), greedy)
    assert torch.equal(model.generate_ids(IDS, seed=3, top_p=1e-6, **options), greedy)
    assert torch.equal(model.generate_ids(IDS, seed=3, temperature=1e-4, **options), greedy)
    for likeliest in (dict(temperature=0), dict(temperature=0.0, top_p=0.5), dict(top_p=0), dict(temperature=1e-9)):
        assert torch.equal(model.generate_ids(IDS, seed=3, **likeliest, **options), greedy)
    for everything in (
        dict(top_k=-1),
        dict(top_k=0),
        dict(top_k=None, top_p=None, temperature=None),
        dict(top_k=10**6),
    ):
        assert torch.equal(model.generate_ids(IDS, seed=3, **everything, **options), first)
    assert not torch.equal(model.generate_ids(IDS, **options), model.generate_ids(IDS, **options))


def test_a_repetition_penalty_keeps_tokens_from_coming_back(model):
    free = model.generate_ids(IDS[:1], max_new_tokens=40)[0].tolist()
    held, again = (
        model.generate_ids(IDS[:1], max_new_tokens=40, repetition_penalty=1000.0)[0].tolist() for _ in range(2)
    )
    assert len(set(free)) < len(set(held)) == 40
    assert again == held  # what the first answer said does not count


def test_threads_get_what_they_would_get_alone():
    def work(n: int) -> list[torch.Tensor]:
        ids = IDS + n
        return [
            model.sample_latents([prompt(n, 5)], normal(n, 1, *LATENT), num_inference_steps=4),
            model.generate_ids(ids, max_new_tokens=6),
            model.next_token_logits(ids),
            model.encode_images(normal(n, 1, 3, IMAGE_SIZE, IMAGE_SIZE)),
        ]

    model = build()  # nothing of it has run before
    with ThreadPoolExecutor(3) as pool:
        together = list(pool.map(work, range(6)))
    alone = [work(n) for n in range(6)]
    for one, other in zip(alone, together, strict=True):
        assert all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


@pytest.mark.parametrize(("dtype", "limit"), [("bfloat16", 4 * 2**-8), ("float16", 4 * 2**-11)])
def test_narrow_dtypes_round_matrices_only(model, dtype, limit):
    narrow = build(dtype)
    assert str(narrow.dtype) == f"torch.{dtype}"
    assert narrow.runner.weights["llm.0.norm1"].dtype is torch.float32
    noise, ids = normal(1, 2, *LATENT), [prompt(1, 5), prompt(2, 9)]
    got, exact = (m.sample_latents(ids, noise, num_inference_steps=3) for m in (narrow, model))
    assert got.dtype is torch.float32
    assert relative_error(got, exact) <= limit
    logits = narrow.next_token_logits(WITH_IMAGE, None, PIXELS, TOKENS)
    assert relative_error(logits, model.next_token_logits(WITH_IMAGE, None, PIXELS, TOKENS)) <= limit
    assert narrow.encode_images(PIXELS[0]).dtype is torch.float32


@pytest.mark.parametrize("options", [{"dtype": "bfloat16"}, {"dtype": "bfloat16", "quantization": "int8"}])
def test_a_row_of_a_batch_differs_from_the_same_alone_by_no_more_than_the_dtype_loses(model, options):
    narrow, noise = build(**options), normal(1, 6, *LATENT)
    prompts = [prompt(i, 4 + 3 * i) for i in range(6)]
    ids, mask = torch.full((6, 20), 3), torch.zeros(6, 20)
    for row, its in enumerate(prompts):
        ids[row, -len(its) :], mask[row, -len(its) :] = torch.tensor(its), 1

    def together(model: JanusFlow) -> list[torch.Tensor]:
        latents = model.sample_latents(prompts, noise, num_inference_steps=4)
        return [latents, model.next_token_logits(ids, mask.long())]

    def alone(model: JanusFlow) -> list[torch.Tensor]:
        latents = [
            model.sample_latents([its], noise[row : row + 1], num_inference_steps=4) for row, its in enumerate(prompts)
        ]
        return [torch.cat(latents), torch.cat([model.next_token_logits(torch.tensor([its])) for its in prompts])]

    exact = alone(model)
    assert all(relative_error(*pair) <= 1e-5 for pair in zip(together(model), exact, strict=True))
    for batch, single, right in zip(together(narrow), alone(narrow), exact, strict=True):
        assert relative_error(batch, single) <= 2 * relative_error(single, right)


def test_official_numerics_round_the_latents(model):
    official = build("bfloat16", numerics="official")
    noise = normal(1, 1, *LATENT)
    z1, trace = official.sample_latents([prompt(1, 5)], noise, num_inference_steps=3, trace=True)
    assert all(torch.equal(z, z.bfloat16().float()) for z in (z1, *(step["z"] for step in trace)))
    assert 1e-3 < relative_error(z1, model.sample_latents([prompt(1, 5)], noise, num_inference_steps=3)) < 0.1
    in_float32 = build("float32", numerics="official").sample_latents([prompt(1, 5)], noise, num_inference_steps=3)
    assert relative_error(in_float32, model.sample_latents([prompt(1, 5)], noise, num_inference_steps=3)) <= 2e-5


def test_an_implementation_can_be_named(model):
    forced = build(implementations={"flow_update": "torch"})
    noise = normal(1, 1, *LATENT)
    got, expected = (m.sample_latents([prompt(1, 5)], noise, num_inference_steps=3) for m in (forced, model))
    assert relative_error(got, expected) <= 1e-6
    nodes = {n.op: n for n in forced.plan("flow_step").nodes}
    assert nodes["flow_update"].implementation.name == "torch"
    assert nodes["flow_update"].reason == "asked for by name"


@pytest.mark.parametrize(
    ("implementations", "words"),
    [
        ({"flow_update": "vulkan"}, ["flow_update", "vulkan", "native", "torch"]),
        ({"cgf_euler": "torch"}, ["cgf_euler"]),
        ({"sample_token": "triton"}, ["sample_token", "triton", "native", "torch"]),
    ],
)
def test_an_unknown_implementation_is_refused_when_the_model_is_built(implementations, words):
    with pytest.raises(PlanError) as error:
        build(implementations=implementations)
    assert all(word in str(error.value) for word in words)


@pytest.mark.parametrize(
    "program",
    ["encode_images", "prefill", "decode_step", "flow_prepare", *FLOW_FORMS, "decode_latents"],
)
def test_plans_of_all_programs(untrained, program):
    plan = untrained.plan(program, rows=2, prompt_tokens=20, steps=5)
    assert plan.name == program
    assert plan.flops > 0
    assert 0 < plan.arena_bytes < plan.unpacked_bytes
    assert program in str(plan)
    assert untrained.plan(program, rows=4, prompt_tokens=20, steps=5).flops > 1.5 * plan.flops


def test_decode_latents_takes_any_size_row_by_row(untrained):
    z = normal(3, 3, 4, 8, 8)
    images = untrained.decode_latents(z)
    assert images.shape == (3, 3, 64, 64)
    assert torch.equal(images[1:2], untrained.decode_latents(z[1:2]))
    assert untrained.decode_latents(normal(3, 1, 4, 5, 9)).shape == (1, 3, 40, 72)
