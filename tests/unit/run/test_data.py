"""What a run makes of its data: changed pictures for training alone, refused where texts might become wrong."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from support.chat_templates import QWEN2, byte_level
from support.runs import QUICK, UNTRACKED, backbones, config, opened
from support.toy_data import PlainSource

from panollava.data.dataset import TextEncoder
from panollava.data.source import Record
from panollava.prompt import ChatPrompt, Limits
from panollava.run.config_check import checked
from panollava.run.data import check_questions, check_records


def test_training_pictures_change_and_no_others(
    backbone: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    asked = [*backbones(backbone), *QUICK, UNTRACKED, "dry_run=true", "stage=vision", "evaluation.enabled=false"]
    seen = {}
    for augment in ("false", "true"):
        with opened(*asked, f"data.augment={augment}") as run:
            assert run.data.augment.is_on == (augment == "true")
            batches = run.batches("vision", run.stage_options("vision"))
            epochs = [torch.cat([batch.pixel_values for (batch,) in batches.windows(epoch)]) for epoch in (0, 0, 1)]
            seen[augment] = [*epochs, next(batches.validation()).pixel_values]
    assert torch.equal(seen["true"][0], seen["true"][1])
    assert not torch.equal(seen["true"][0].sort(dim=0)[0], seen["true"][2].sort(dim=0)[0])
    assert torch.equal(seen["false"][0].sort(dim=0)[0], seen["false"][2].sort(dim=0)[0])
    assert torch.equal(seen["true"][3], seen["false"][3])


def test_panoramas_that_lack_the_seam_are_not_turned() -> None:
    asked = ["data=csv", "crop.panorama_fov_deg=[180,90]", "data.augment=true"]
    told = r"data\.augment_turn=true: pictures of 180 of 360 degrees .* Set data\.augment_turn=false; colours"
    with pytest.raises(ValueError, match=told):
        checked(config(*asked))
    checked(config(*asked, "data.augment_turn=false"))


class Table(PlainSource):
    """Records as of a data file; the third spells a token."""

    name, path = "t", Path("t.csv")

    def record(self, index: int, epoch: int) -> Record:
        return Record(f"t-row{index + 2}", (("what?", "a <box>" if index == 2 else "a ball"),))


def test_a_token_without_an_embedding_is_named_with_its_row_before_training() -> None:
    tokenizer = byte_level(QWEN2)
    rows = len(tokenizer)
    tokenizer.add_tokens(["[PAD]", "<box>"])
    limits = Limits(positions=512, rows=rows)
    encoder = TextEncoder(ChatPrompt(tokenizer), image_tokens=3, max_text_length=100)
    check_records(Table(2), encoder, limits)
    with pytest.raises(
        ValueError, match=rf"^t.csv: .*\n  row 4: the language model has {rows} embeddings and none for <box>"
    ):
        check_records(Table(4), encoder, limits)
    with pytest.raises(ValueError, match=r"row 2 and 2 more: .* none for <\|im_start\|>"):
        check_records(Table(4), encoder, Limits(512, tokenizer.convert_tokens_to_ids("<|im_start|>")))


def test_a_question_beyond_the_positions_is_named() -> None:
    prompt = ChatPrompt(byte_level(QWEN2))
    fitting = len(prompt.encode([("what", None)], image_tokens=3).ids)
    check_questions(PlainSource(1), prompt, Limits(fitting + 4, 10**6), image_tokens=3, new_tokens=4)
    with pytest.raises(ValueError, match=rf"^plain: .*\n  0-0 and 1 more: {fitting} tokens \(3 of them .* 4 new ones"):
        check_questions(PlainSource(1), prompt, Limits(fitting + 3, 10**6), image_tokens=3, new_tokens=4)
