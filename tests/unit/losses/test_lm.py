"""The language loss as a sum, and the number of right predictions."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from panollava.batch import IGNORE_INDEX
from panollava.stages import language
from panollava.stages.language import logit_losses


def test_sums_are_those_of_the_targets():
    logits = torch.randn(2, 5, 7)
    labels = torch.randint(0, 7, (2, 5))
    labels[0, :3] = IGNORE_INDEX
    total, right = logit_losses(logits, labels)
    expected, found = 0.0, 0
    for row, label in zip(logits.reshape(-1, 7), labels.flatten(), strict=True):
        if label != IGNORE_INDEX:
            expected -= float(row.double().softmax(-1)[label].log())
            found += int(row.argmax() == label)
    assert right.item() == found
    assert total.item() == pytest.approx(expected, rel=1e-5)


def test_parts_add_up_to_the_whole():
    logits, labels = torch.randn(6, 4, 9), torch.randint(0, 9, (6, 4))
    labels[::2, 1:] = IGNORE_INDEX
    whole, right = logit_losses(logits, labels)
    parts = [logit_losses(logits[i : i + 2], labels[i : i + 2]) for i in range(0, 6, 2)]
    torch.testing.assert_close(sum(part[0] for part in parts), whole)
    assert sum(part[1] for part in parts) == right


def test_ignored_positions_get_no_gradient():
    logits = torch.randn(4, 5, requires_grad=True)
    total, _ = logit_losses(logits, torch.tensor([1, IGNORE_INDEX, 2, IGNORE_INDEX]))
    total.backward()
    touched = logits.grad.abs().sum(-1) > 0
    assert touched.tolist() == [True, False, True, False]


def test_no_target_is_zero_with_zero_gradient():
    logits = torch.randn(3, 5, requires_grad=True)
    total, right = logit_losses(logits, torch.full((3,), IGNORE_INDEX))
    total.backward()
    assert total.item() == 0
    assert right.item() == 0
    assert logits.grad.abs().max() == 0


def test_low_precision_logits_are_summed_in_float32():
    logits, labels = torch.randn(3, 600, 11), torch.randint(0, 11, (3, 600))
    total, _ = logit_losses(logits.bfloat16(), labels)
    expected, _ = logit_losses(logits.bfloat16().float(), labels)
    assert total.dtype == torch.float32
    torch.testing.assert_close(total, expected)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert logit_losses(logits, labels)[0].dtype == torch.float32


@pytest.mark.parametrize("rows", [1, 2, 7, 100])
def test_losses_in_parts_are_those_of_all_logits(monkeypatch: pytest.MonkeyPatch, rows: int) -> None:
    """Loss, right predictions and gradients; only states with a label are projected in parts."""
    torch.manual_seed(0)
    head, states = nn.Linear(6, 11), torch.randn(2, 5, 6)
    labels = torch.tensor([[1, IGNORE_INDEX, 2, 3, 10], [IGNORE_INDEX, IGNORE_INDEX, 0, 5, IGNORE_INDEX]])
    labels[0, 3] = head(states)[0, 3].argmax()
    found = []
    for part in (2**24, 11 * rows):
        monkeypatch.setattr(language, "PART", part)
        head.zero_grad()
        leaf = states.clone().requires_grad_()
        loss, right = language.head_losses(head, leaf, labels)
        (2 * loss).backward()
        assert leaf.grad is not None
        assert head.weight.grad is not None
        found.append((loss.detach(), right, leaf.grad, head.weight.grad.clone()))
    assert found[0][1] >= 1
    torch.testing.assert_close(found[1], found[0])
    assert not found[0][2][labels == IGNORE_INDEX].any()


def test_a_batch_without_a_label_has_a_loss_of_0(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(language, "PART", 11)
    head, states = nn.Linear(6, 11), torch.randn(2, 3, 6, requires_grad=True)
    loss, right = language.head_losses(head, states, torch.full((2, 3), IGNORE_INDEX))
    loss.backward()
    assert (float(loss.detach()), int(right)) == (0.0, 0)
