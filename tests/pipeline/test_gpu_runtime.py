"""The whole model on a GPU's path, with a stand-in for CUDA: the same results as on the CPU, in the order that graphs
need."""

from __future__ import annotations

import pytest
import torch
from flashjanus import JanusFlow
from flashjanus.engine.device import capabilities as device_module
from flashjanus.engine.ops import all_ops
from flashjanus.errors import DeviceError, InputError, OutOfMemoryError
from flashjanus.execution import loading, runner
from flashjanus.execution.buckets import EXACT, PADDED, Buckets, padded
from flashjanus.execution.prefixes import PrefixStore
from flashjanus.execution.reading import reading
from flashjanus.execution.text import ImageTokens, TextRequest
from flashjanus.execution.text_rows import DecodeSession
from gpu_stand_in import stand_in
from small_model import FEATURES, IMAGE, IMAGE_SIZE, LATENT, START, small_config, small_state

TORCH = {name: ["torch"] for name in all_ops()}
"""Triton and CUDA kernels, which would serve on a GPU, do not run on the stand-in's tensors."""
TOKENS = ImageTokens(START, IMAGE)


def normal(seed: int, *shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def prompt(seed: int, length: int) -> list[int]:
    return torch.randint(1, 70, (length,), generator=torch.Generator().manual_seed(seed)).tolist()


@pytest.fixture
def driver(monkeypatch):
    """Whose copies land late."""
    made = stand_in(monkeypatch)
    with made.copies:
        yield made


def build(device, **options):
    config = small_config()
    return JanusFlow.from_state_dict(
        config, small_state(config), device=device, dtype="float32", implementations=TORCH, **options
    )


@pytest.fixture(scope="module")
def on_cpu():
    return build("cpu")


@pytest.fixture
def on_gpu(driver):
    return build("cuda")


def draw(model):
    prompts = [prompt(1, 6), prompt(2, 20), prompt(3, 9)]
    options = dict(guidance_scale=[3.0, 1.0, 2.0], num_inference_steps=[4, 2, 3])
    return model.sample_latents(prompts, normal(4, 3, *LATENT), **options)


def test_images_are_those_of_the_cpu(on_cpu, on_gpu, driver):
    """Three rows in a bucket of four, one of them without guidance, and three prompts."""
    torch.testing.assert_close(draw(on_gpu), draw(on_cpu), rtol=0, atol=1e-5)
    prepared, four, two, one = range(4)  # as they were captured
    assert driver.asked("capture") == ["capture"] * 4
    before = len(driver.log)
    draw(on_gpu)
    later = [entry for entry in driver.log[before:] if entry[0] not in ("synchronize", "record")]
    assert later == [("replay", n) for n in (four, four, two, one)], "rows of 4, 2 and 3 steps, and nothing between"
    on_gpu.prefixes.clear()
    before = len(driver.log)
    draw(on_gpu)
    later = [entry for entry in driver.log[before:] if entry[0] not in ("synchronize", "record")]
    assert later[:4] == [("replay", n) for n in (prepared, prepared, prepared, four)], "each prompt alone"


def test_trace_and_callbacks_see_the_rows_of_requests_only(on_cpu, on_gpu):
    options = dict(guidance_scale=[1.0, 2.0, 1.0], num_inference_steps=2, trace=True)
    noise, prompts = normal(5, 3, *LATENT), [prompt(1, 5), prompt(2, 7), prompt(3, 5)]
    due, got = (model.sample_latents(prompts, noise, **options)[1] for model in (on_cpu, on_gpu))
    for a, b in zip(got, due, strict=True):
        assert a.keys() == b.keys()
        for name, value in a.items():
            torch.testing.assert_close(value, b[name], rtol=0, atol=1e-5, equal_nan=True)


def test_evaluations_without_branches_replay_a_graph_of_their_own(on_cpu, on_gpu, driver):
    """Solvers, intervals and reuse in one bucket; the host chooses the graph and waits for nothing."""
    prompts, noise = [prompt(1, 6), prompt(2, 20), prompt(3, 9)], normal(4, 3, *LATENT)
    options = dict(
        num_inference_steps=[6, 3, 4],
        solver=["ab2", "euler", "ab2"],
        uncond_every=[2, 1, 4],
        guidance_interval=[(0.0, 0.7), (0.0, 0.3), (0.0, 1.0)],
        guidance_rescale=[0.0, 0.5, 0.0],
        timestep_shift=[1.0, 2.0, 1.0],
    )
    got = on_gpu.sample_latents(prompts, noise, **options)
    torch.testing.assert_close(got, on_cpu.sample_latents(prompts, noise, **options), rtol=0, atol=1e-5)
    assert driver.asked("capture") == ["capture"] * 7
    before = len(driver.log)
    on_gpu.sample_latents(prompts, noise, **options)
    later = [entry for entry in driver.log[before:] if entry[0] not in ("synchronize", "record")]
    full, conditional, two_conditional, one, one_conditional = 1, 2, 4, 5, 6  # as they were captured
    due = [full, full, full, two_conditional, one, one_conditional]  # of the rows: 0, 2, 4; 0, 1, 2; 0
    assert later == [("replay", number) for number in due]
    assert conditional not in due, "three rows always have one that needs its branch"


def test_evaluations_that_recall_replay_a_graph_without_the_language_model(on_cpu, on_gpu, driver):
    prompts, noise = [prompt(1, 6), prompt(2, 20)], normal(4, 2, *LATENT)
    options = dict(num_inference_steps=[5, 4], step_cache=[4, (0, 0.5)], guidance_interval=(0.0, 0.5))
    got = on_gpu.sample_latents(prompts, noise, **options)
    torch.testing.assert_close(got, on_cpu.sample_latents(prompts, noise, **options), rtol=0, atol=1e-5)
    assert driver.asked("capture") == ["capture"] * 9
    before = len(driver.log)
    on_gpu.sample_latents(prompts, noise, **options)
    later = [entry for entry in driver.log[before:] if entry[0] not in ("synchronize", "record")]
    storing, recalling_conditional, one_conditional = 1, 4, 6  # as they were captured
    # the language model runs in evaluations 0, 1 and 4 of one row and in 0 and 2 of the other, guidance up to t = 0.5
    due = [storing, storing, storing, recalling_conditional, one_conditional]
    assert later == [("replay", number) for number in due]


def ask(model, **options):
    ids = torch.tensor([[1, START, *[IMAGE] * FEATURES, 5, 6, 7], [2, 3, 4, 5, 6, 7, 8, *range(10, 24)]])
    mask = torch.ones_like(ids)
    mask[1, :9] = 0
    pixels = normal(6, 2, 1, 3, IMAGE_SIZE, IMAGE_SIZE)
    return model.generate_ids(ids, mask, pixels, image_tokens=TOKENS, **options)


@pytest.mark.parametrize(
    "options", [dict(max_new_tokens=12), dict(max_new_tokens=9, do_sample=True, temperature=1.3, top_k=20, seed=3)]
)
def test_answers_are_those_of_the_cpu(on_cpu, on_gpu, options):
    assert torch.equal(ask(on_gpu, **options), ask(on_cpu, **options))


def test_an_answer_ends_at_the_end_token_or_the_context(on_cpu, on_gpu):
    greedy = ask(on_cpu, max_new_tokens=12)
    eos = int(greedy[0, 3])
    assert torch.equal(*(ask(m, max_new_tokens=12, eos_token_id=eos) for m in (on_gpu, on_cpu)))
    assert torch.equal(*(ask(m, max_new_tokens=500) for m in (on_gpu, on_cpu)))


def test_a_prompt_that_fills_the_context_takes_no_position_past_it(on_cpu):
    """Beside one that goes on, in torch, which refuses an index past the rotary table."""
    limit = on_cpu.config.language.max_position_embeddings
    ids = torch.tensor([prompt(1, limit), [0] * (limit - 5) + prompt(2, 5)])
    mask = torch.ones_like(ids)
    mask[1, :-5] = 0
    answers = on_cpu.generate_ids(ids, mask, max_new_tokens=4)
    for row, kept in enumerate(mask.bool()):
        alone = on_cpu.generate_ids(ids[row : row + 1, kept], max_new_tokens=4)[0]
        assert torch.equal(answers[row, : len(alone)], alone)


def test_the_next_step_is_launched_before_the_host_reads_a_token(on_gpu, driver):
    ask(on_gpu, max_new_tokens=4)
    driver.log.clear()
    ask(on_gpu, max_new_tokens=4)
    order = driver.asked("replay", "synchronize", "record")
    # sent pixels and settings; then a step is launched and its token's copy recorded before the one before is awaited
    last = order[order.index("replay", order.index("replay") + 1) :]
    assert "rRrsRrs" in "".join({"replay": "R", "record": "r", "synchronize": "s"}[kind] for kind in last)


def test_features_and_pictures_are_those_of_the_cpu(on_cpu, on_gpu):
    pixels = normal(7, 3, 3, IMAGE_SIZE, IMAGE_SIZE)
    torch.testing.assert_close(on_gpu.encode_images(pixels), on_cpu.encode_images(pixels), rtol=0, atol=1e-5)


def test_without_graphs_every_run_launches_kernel_by_kernel(on_cpu, driver):
    model = build("cuda", cuda_graphs=False)
    torch.testing.assert_close(draw(model), draw(on_cpu), rtol=0, atol=1e-5)
    assert not driver.asked("capture", "replay", "aside")


def test_warming_up_captures_the_largest_first_and_requests_capture_no_more(on_gpu, driver):
    made = []
    plan = on_gpu.runner.plan
    on_gpu.runner.plan = lambda program, **sizes: made.append((program, sizes)) or plan(program, **sizes)
    on_gpu.warm_up(images=[1, 4], conversations=[1], prompt_tokens=[40, 10], steps=4, new_tokens=20)
    flows = [sizes for program, sizes in made if program == "flow_step"]
    assert [(s["R"], s["P"]) for s in flows] == [(rows, prompt) for rows in (4, 2, 1) for prompt in (64, 32)]
    captured = len(driver.asked("capture"))
    assert driver.asked("pool") == ["pool"]
    draw(on_gpu)
    on_gpu.sample_latents([prompt(1, 9)] * 4, normal(1, 4, *LATENT), num_inference_steps=2)
    on_gpu.generate_ids(torch.tensor([prompt(1, 12)]), max_new_tokens=3)
    ids = torch.tensor([[1, START, *[IMAGE] * FEATURES, 5]])
    on_gpu.generate_ids(ids, None, normal(6, 1, 1, 3, IMAGE_SIZE, IMAGE_SIZE), image_tokens=TOKENS, max_new_tokens=2)
    assert len(driver.asked("capture")) == captured


def test_warming_up_for_a_preset_captures_its_plans(on_gpu, driver):
    on_gpu.warm_up(images=[1], conversations=[], prompt_tokens=[9], preset="fast")
    captured = len(driver.asked("capture"))
    on_gpu.sample_latents([prompt(1, 9)], normal(1, 1, *LATENT), preset="fast")
    assert len(driver.asked("capture")) == captured
    with pytest.raises(InputError, match="preset: expected one of"):
        on_gpu.warm_up(preset="best")


def test_another_stream_waits_for_the_one_that_used_the_model_last(on_gpu, driver):
    draw(on_gpu)
    assert not driver.asked("wait")
    driver.on = "stream 1"
    before = len(driver.log)
    draw(on_gpu)
    assert driver.log[before] == ("wait", "stream 1", "stream 0")
    assert driver.asked("wait") == ["wait"]


def test_buckets_are_sized_by_the_user(driver):
    model = build("cuda", buckets={"rows": [3], "prompt_tokens": [8, 24], "steps": [4]})
    draw(model)
    (plan,) = [session.flow.plan for session in model.runner._idle.values() if hasattr(session, "flow")]
    assert plan.sizes == {"R": 3, "U": 3, "P": 24, "K": 4}


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"images": [1]}, "buckets: expected one of 'rows', 'prompt_tokens', 'steps', 'new_tokens', got 'images'"),
        ({"rows": []}, r"buckets: expected a list of sizes for rows, got \[\]"),
        ({"rows": [0]}, "buckets: rows: expected an integer from 1"),
        ({"steps": "30"}, "buckets: expected a list of sizes for steps, got '30'"),
    ],
)
def test_buckets_that_are_none_are_refused(given, message):
    with pytest.raises(InputError, match=message):
        Buckets.of(given, EXACT)


def test_the_bucket_of_least_padding_is_taken():
    assert [padded(n, PADDED.rows) for n in (1, 3, 4, 5, 32, 33, 65)] == [1, 4, 4, 8, 32, 64, 96]
    assert [padded(n, EXACT.rows) for n in (1, 3, 77)] == [1, 3, 77]
    assert [PADDED.images(n, 4) for n in (0, 1, 4, 5)] == [4, 4, 4, 8], "an image for each conversation, at least"
    assert [EXACT.images(n, 4) for n in (0, 1, 5)] == [0, 1, 5]
    assert [padded(n, EXACT.prompt_tokens) for n in (1, 16, 17)] == [16, 16, 32]


def test_memory_that_is_missing_is_named(driver, monkeypatch):
    model = build("cuda")
    monkeypatch.setattr(torch, "zeros", _no_memory)
    with pytest.raises(
        OutOfMemoryError,
        match=r"flow_prepare \[R=1, U=1, P=32, K=30\]: not enough memory on cpu for [\d.]+ GiB states; 3.00 of 4",
    ):
        draw(model)
    monkeypatch.undo()


def test_weights_that_do_not_fit_are_named(driver, monkeypatch):
    monkeypatch.setattr(loading, "load_weights", _no_memory)
    with pytest.raises(
        OutOfMemoryError, match=r"state_dict: not enough memory on cpu for [\d.]+ GiB weights in torch.float32"
    ):
        build("cuda")


def _no_memory(*args, **kwargs):
    raise torch.OutOfMemoryError("CUDA out of memory")


def test_a_gpu_that_cannot_be_used_is_refused_before_anything_is_read(monkeypatch):
    monkeypatch.setattr(device_module, "unusable", lambda device: "expected compute capability 8.0 or later")
    with pytest.raises(
        DeviceError, match=r"device 'cuda': expected compute capability 8\.0 or later; device='cpu' works"
    ):
        build("cuda")


def test_a_row_that_met_its_end_token_moves_no_more(on_gpu):
    request = TextRequest(tuple(range(5, 13)))
    tokens = on_gpu.generate_ids(torch.tensor([request.ids]), max_new_tokens=6)[0].tolist()
    with pytest.raises(StopIteration) as read:
        next(reading(on_gpu.runner, PrefixStore(0), request, None))
    prefix = read.value.value.prefix
    session = DecodeSession(on_gpu.runner, 2, 64, 32)
    session.join(0, request, prefix, tokens[0], eos=tokens[3])
    for _ in range(6):
        session.step()
    assert session.states["live"].tolist() == [0, 0]
    moved = tokens.index(tokens[3]) - 1
    assert session.states["position"].tolist() == session.states["slot"].tolist() == [prefix.k.shape[1] + moved, 0]


def test_a_forked_process_is_told_to_load_the_model_itself(on_gpu, monkeypatch):
    monkeypatch.setattr(on_gpu.runner, "_process", 1)
    with pytest.raises(DeviceError, match=r"in a process forked from it, .*: load the model in the child"):
        draw(on_gpu)


def test_warming_up_on_a_cpu_makes_the_memory_that_requests_take(on_cpu):
    model = build("cpu")
    model.warm_up(images=[1], conversations=[], prompt_tokens=[9], steps=3)
    before = dict(model.runner._idle)
    model.sample_latents([prompt(1, 9)], normal(1, 1, *LATENT), num_inference_steps=3)
    assert {key: id(session) for key, session in model.runner._idle.items()} == {k: id(s) for k, s in before.items()}
    with pytest.raises(InputError, match="prompt_tokens: expected an integer from 1"):
        model.warm_up(prompt_tokens=[0])


def test_plans_are_those_of_the_buckets(on_gpu):
    assert on_gpu.plan("flow_step", rows=3, prompt_tokens=33, steps=7).sizes == {"R": 4, "U": 4, "P": 64, "K": 30}
    assert on_gpu.plan("decode_step", rows=1, prompt_tokens=33, steps=7).sizes == {"B": 1, "S": 64 + 128, "K": 128}
    text = "rows 1, 2, 4, 8, 16, 32, then multiples of 32; prompt_tokens 32, 64, 128"
    assert str(on_gpu.buckets).startswith(text)
    assert str(EXACT).startswith("rows as asked; prompt_tokens multiples of 16; steps as asked")


def test_idle_memory_goes_before_a_request_fails(on_cpu, on_gpu, driver, monkeypatch):
    draw(on_gpu)
    assert on_gpu.runner._idle
    noise = normal(1, 1, *LATENT)
    due = on_cpu.sample_latents([prompt(1, 40)], noise, num_inference_steps=2)
    zeros, left = torch.zeros, [1]

    def scarce(*args, **kwargs):
        if left:
            left.pop()
            raise torch.OutOfMemoryError("CUDA out of memory")
        return zeros(*args, **kwargs)

    monkeypatch.setattr(torch, "zeros", scarce)
    got = on_gpu.sample_latents([prompt(1, 40)], noise, num_inference_steps=2)
    torch.testing.assert_close(got, due, rtol=0, atol=1e-5)
    assert "release" in driver.asked()


def test_memory_is_given_back_when_nobody_uses_it_any_more(driver, monkeypatch):
    monkeypatch.setattr(runner, "IDLE_SHARE", 0.0)
    draw(build("cuda"))
    assert driver.asked("release") == ["release"] * 3, "the last that was used stays"


def test_pictures_come_as_they_are_asked_for(driver):
    """The built-in model, which has a VAE and a tokenizer."""
    options = dict(num_inference_steps=2, seed=1)
    kinds = ("np", "pil", "pt")
    model, due = (
        JanusFlow.from_pretrained("shapes", device=device, dtype="float32", implementations=TORCH)
        for device in ("cuda", "cpu")
    )
    arrays = {
        name: [
            torch.as_tensor(m.generate_image("a red circle", output_type=name, **options).images) for m in (model, due)
        ]
        for name in kinds
        if name != "pil"
    }
    for got, expected in arrays.values():
        torch.testing.assert_close(got, expected, rtol=0, atol=1e-4)
    assert model.generate_image("a red circle", **options).images[0].size == (64, 64)
    assert driver.asked("synchronize device")
