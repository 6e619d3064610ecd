"""Gradients of the official model class: those of its modules, whatever computed the result."""

from __future__ import annotations

import pytest
import torch
from official_calls import conversations, evaluated, on_the_engine, on_torch, small_official, velocity
from small_model import LATENT, normal, relative_error

NEAR = 1e-4


def gradients(model, run) -> dict[str, torch.Tensor]:
    model.zero_grad()
    run(model).float().square().sum().backward()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def of_language(model):
    mask = torch.tensor([[1, 1, 1, 1], [0, 1, 1, 1]])
    ids = torch.tensor([[0, 4, 9, 30], [2, 0, 5, 6]])
    return model.language_model(ids, attention_mask=mask).logits[:, 1:]


def of_flow(model):
    hs, t_emb, tokens = evaluated(model, normal(1, 1, *LATENT), 300.0)
    hidden = model.language_model.model(inputs_embeds=torch.cat([t_emb[:, None], tokens], 1)).last_hidden_state
    return velocity(model, hidden, hs, t_emb)


def of_images(model):
    return model.prepare_inputs_embeds(**conversations(model))


@pytest.mark.parametrize("run", [of_language, of_flow, of_images])
def test_they_are_those_of_the_modules(run):
    model = small_official()
    with on_the_engine():
        got = gradients(model, run)
    expected = gradients(on_torch(model), run)
    assert got.keys() == expected.keys()
    norms = sum(float(g.norm()) for g in expected.values())
    assert norms > 0
    for name, gradient in expected.items():
        if gradient.norm() > 1e-6 * norms:
            assert relative_error(got[name], gradient) <= NEAR, name


def test_training_moves_what_the_engine_runs_on():
    model = small_official()
    ids = torch.tensor([[0, 4, 9, 30, 22, 8]])
    before = float(model.language_model(ids, labels=ids).loss)
    model.train()
    model.gradient_checkpointing_enable()
    optimizer = torch.optim.SGD(model.language_model.parameters(), lr=0.05)
    for _ in range(5):
        optimizer.zero_grad()
        model.language_model(ids, labels=ids).loss.backward()
        optimizer.step()
    model.eval()
    with on_the_engine(), torch.no_grad():
        after = float(model.language_model(ids, labels=ids).loss)
    assert after < 0.9 * before
