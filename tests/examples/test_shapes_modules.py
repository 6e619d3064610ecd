"""The training modules: their own gradients against torch's, and both faces against the float64 reference."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from autoencoder import AutoencoderKL, norm_silu
from configs import model_config, vae_config
from data import Encoder, answer_batch, ask, draw_batch, seen_scenes
from flashjanus.inputs.tokenizer import Tokenizer
from flashjanus.measure.evaluation import world
from janusflow import JanusFlow, rms_norm, rotate
from model_reference import Reference
from package import TOKENIZER_FILES, train_tokenizer, write_text_files
from pictures import pixels
from recipe import MINIATURE
from small_model import normal, relative_error
from torch import Tensor
from whiten import whiten

CPU = torch.device("cpu")


def assert_same_gradients(got: Callable[..., Tensor], expected: Callable[..., Tensor], *inputs: Tensor) -> None:
    """Values and all gradients, for a random gradient of the output."""
    ours = [t.clone().requires_grad_() for t in inputs]
    theirs = [t.double().requires_grad_() for t in inputs]
    out, reference = got(*ours), expected(*theirs)
    direction = normal(99, *out.shape)
    torch.autograd.backward(out, direction)
    torch.autograd.backward(reference, direction.double())
    torch.testing.assert_close(out.double(), reference, rtol=1e-5, atol=1e-5)
    for a, b in zip(ours, theirs, strict=True):
        assert a.grad is not None
        assert b.grad is not None
        assert relative_error(a.grad, b.grad) < 1e-5


@pytest.mark.parametrize(("channels", "side", "groups"), [(8, 6, 4), (16, 5, 2), (64, 4, 8)])
def test_norm_silu(channels: int, side: int, groups: int) -> None:
    x = (normal(1, 3, channels, side, side) * 2 + 0.7).contiguous(memory_format=torch.channels_last)
    assert_same_gradients(
        lambda x, w, b: norm_silu(x, w, b, groups, 1e-6),
        lambda x, w, b: F.silu(F.group_norm(x, groups, w, b, 1e-6)),
        x,
        1 + normal(2, channels),
        normal(3, channels),
    )


def test_rms_norm() -> None:
    def expected(x: Tensor, weight: Tensor) -> Tensor:
        return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + 1e-6) * weight

    assert_same_gradients(lambda x, w: rms_norm(x, w, 1e-6), expected, 3 * normal(1, 2, 5, 24), normal(2, 24))


def test_rotation() -> None:
    angles = normal(1, 2, 5, 1, 1, 4).expand(2, 5, 2, 3, 4)
    cos, sin = angles.cos(), angles.sin()
    rope = torch.cat([cos, cos], -1), torch.cat([-sin, sin], -1)

    def expected(x: Tensor) -> Tensor:
        a, b = x[..., :4], x[..., 4:]
        return torch.cat([a * cos - b * sin, b * cos + a * sin], -1)

    assert_same_gradients(lambda x: rotate(x, rope), expected, normal(2, 2, 5, 2, 3, 8))


@pytest.mark.parametrize("grid", [(4, 4), (8, 9)])
def test_depthwise_convolution_as_a_product(model: JanusFlow, grid: tuple[int, int]) -> None:
    at = "vision_gen_enc_model.mid_block.res_blocks.0.depthwise"
    channels = len(model[f"{at}.bias"])
    x = normal(1, 2, *grid, channels)
    model.zero_grad()
    assert_same_gradients(
        lambda x: model.depthwise(x, at),
        lambda x: F.conv2d(
            x.permute(0, 3, 1, 2),
            model[f"{at}.weight"].detach().double(),
            model[f"{at}.bias"].detach().double(),
            padding=3,
            groups=channels,
        ).permute(0, 2, 3, 1),
        x,
    )
    weight = model[f"{at}.weight"].detach().double().requires_grad_()
    out = F.conv2d(x.double().permute(0, 3, 1, 2), weight, padding=3, groups=channels)
    torch.autograd.backward(out, normal(99, *x.shape).double().permute(0, 3, 1, 2))
    gradient = model[f"{at}.weight"].grad
    assert gradient is not None
    assert weight.grad is not None
    assert relative_error(gradient, weight.grad) < 1e-5


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> Encoder:
    folder = tmp_path_factory.mktemp("tokenizer")
    write_text_files(folder, train_tokenizer(400), {}, {})
    return Encoder(Tokenizer.from_files(*(folder / file for file in TOKENIZER_FILES)))


CONFIG = model_config(512, MINIATURE.sizes)


@pytest.fixture(scope="module")
def model() -> JanusFlow:
    """No tensor is left at zero or one, so that none can be mixed up unseen."""
    built = JanusFlow(CONFIG, torch.Generator().manual_seed(0))
    for k, p in enumerate(built.parameters()):
        p.data += 0.1 * normal(k, *p.shape)
    return built


@pytest.fixture(scope="module")
def reference(model: JanusFlow) -> Reference:
    return Reference(CONFIG, model.official_state())


@torch.no_grad()
def test_velocities_of_several_levels_behind_one_prompt(
    model: JanusFlow, encoder: Encoder, reference: Reference
) -> None:
    prompts = [encoder.prompt(text) for text in ("a red circle", "a photo of a red circle left of a blue square")]
    dropped = torch.tensor([[False, True], [False, False]])
    batch = draw_batch(prompts, 2, model.config.num_image_tokens, dropped, CPU)
    z, times = normal(1, 4, 4, 8, 8), torch.tensor([100.0, 500.0, 0.0, 900.0])
    v, middle = model.velocity(batch.ids, batch.packed, z, times, middle=1)
    assert middle.shape == (4, 16, MINIATURE.sizes.hidden)
    for k in range(4):
        expected = reference.velocity(prompts[k // 2], z[k].double(), float(times[k]), not bool(dropped.flatten()[k]))
        assert relative_error(v[k], expected) < 1e-5


@torch.no_grad()
def test_logits_of_several_questions_behind_one_picture(
    model: JanusFlow, encoder: Encoder, reference: Reference
) -> None:
    rng = np.random.default_rng(0)
    scenes = seen_scenes(rng, 2)
    asked = [ask(rng, scene, 3) for scene in scenes]
    batch = answer_batch(encoder, asked, CPU)
    x = pixels([world.render(scene) for scene in scenes])
    logits = model.answers(batch.ids, batch.packed, model.read(model.see(x)), encoder.image_start)
    for row, questions in enumerate(asked):
        columns = (batch.targets[row] != -100).nonzero().flatten().tolist()
        for question in questions:
            answer = encoder.answer(question.answer)
            here, columns = columns[: len(answer)], columns[len(answer) :]
            assert batch.targets[row, here].tolist() == answer
            for n, column in enumerate(here):
                ids = [*encoder.picture, *encoder.question(question.text), *answer[:n]]
                tokenizer = encoder.tokenizer
                expected = reference.logits(ids, [x[row]], tokenizer.image_start_id, tokenizer.image_id)
                assert relative_error(logits[row, column], expected) < 1e-5
        assert not columns


@torch.no_grad()
def test_whitening_leaves_pictures_the_same() -> None:
    torch.manual_seed(0)
    vae = AutoencoderKL(vae_config(MINIATURE.sizes))
    x = torch.rand(40, 3, 64, 64, generator=torch.Generator().manual_seed(1)) * 2 - 1
    means = vae.encode(x)[0]
    pictures, log_variance = vae.decode(means), vae.encode(x)[1]
    whiten(vae, means)
    rows = vae.encode(x)[0].permute(1, 0, 2, 3).flatten(1)
    torch.testing.assert_close(vae.decode(vae.encode(x)[0]), pictures, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(rows.mean(1), torch.zeros(4), rtol=0, atol=1e-3)
    torch.testing.assert_close(torch.cov(rows), torch.eye(4), rtol=0, atol=1e-3)
    assert torch.equal(vae.encode(x)[1], log_variance)
