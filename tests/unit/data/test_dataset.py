"""Samples and batches: records with views, shared panoramas of questions, padding, masks and labels."""

from __future__ import annotations

import numpy as np
import torch
from support.chat_templates import QWEN2, byte_level
from support.toy_data import PlainCrop, PlainSource, encode, encode_question

from panollava.batch import IGNORE_INDEX
from panollava.crop.crop import Crop
from panollava.crop.strategies import AnyresE2pCrop
from panollava.data.dataset import CutCount, PanoDataset, QuestionDataset, TextEncoder, count_cut
from panollava.data.loader import Collate
from panollava.data.source import DataSource, Question, Record
from panollava.prompt import ChatPrompt, Encoded


def test_a_sample_is_views_cameras_and_the_record_of_its_epoch() -> None:
    crop = Crop(AnyresE2pCrop(fov_deg=90.0, overlap=0.0), view_size=(8, 8))
    dataset = PanoDataset(PlainSource(3), crop, encode)
    sample = dataset[(4, 2)]
    assert (len(dataset), sample.sample_id) == (3, "plain-2")
    assert (sample.views.shape, sample.views.dtype) == ((5, 3, 8, 8), torch.uint8)
    assert torch.equal(sample.cameras, crop.camera_rows)
    assert sample.text == encode(Record("", (("epoch 4", "grey grey grey"),)))


def test_a_stage_without_text_has_no_tokens() -> None:
    sample = PanoDataset(PlainSource(1), PlainCrop(), None)[(0, 0)]
    batch = Collate()([sample])
    assert sample.text is None
    assert (batch.input_ids, batch.attention_mask, batch.labels) == (None, None, None)


def test_questions_of_one_panorama_are_neighbours_and_share_its_views() -> None:
    source = PlainSource(6)
    dataset = QuestionDataset(source, PlainCrop(), encode_question)
    assert [question.image_id for question in dataset.questions[:4]] == ["0", "0", "1", "1"]
    samples = [dataset[index] for index in range(len(dataset))]
    assert source.read == list(range(6))
    assert [sample.sample_id for sample in samples] == [question.sample_id for question in dataset.questions]
    assert [int(sample.views[0, 0, 0, 0]) for sample in samples] == [index // 2 for index in range(12)]


def test_training_batches_are_padded_on_the_right_with_labels_on_targets() -> None:
    dataset = PanoDataset(PlainSource(2), PlainCrop(), encode)
    batch = Collate(pad_id=99)([dataset[(0, 0)], dataset[(0, 1)]])
    assert batch.input_ids is not None
    assert batch.attention_mask is not None
    assert batch.labels is not None
    assert batch.input_ids.tolist() == [[5, 1, 4, 99], [5, 1, 4, 4]]
    assert batch.attention_mask.tolist() == [[1, 1, 1, 0], [1, 1, 1, 1]]
    ignore = IGNORE_INDEX
    assert batch.labels.tolist() == [[ignore, ignore, 4, ignore], [ignore, ignore, 4, 4]]
    assert batch.sample_ids == ["plain-0", "plain-1"]


def test_generation_batches_are_padded_on_the_left_without_labels() -> None:
    dataset = QuestionDataset(PlainSource(3), PlainCrop(), encode_question)
    batch = Collate(pad_id=0, padding_side="left")([dataset[0], dataset[4]])
    assert batch.input_ids is not None
    assert batch.attention_mask is not None
    assert batch.input_ids.tolist() == [[0, 0, 7], [7, 7, 7]]
    assert batch.attention_mask.tolist() == [[0, 0, 1], [1, 1, 1]]
    assert batch.labels is None


def test_samples_with_fewer_views_are_padded_and_masked() -> None:
    samples = [PanoDataset(PlainSource(9), PlainCrop(views), None)[(0, 8)] for views in (1, 3)]
    batch = Collate()(samples)
    assert batch.pixel_values.shape == (2, 3, 3, 8, 16)
    assert batch.view_mask.tolist() == [[True, False, False], [True, True, True]]
    assert batch.cameras[0, 1:].abs().sum() == 0
    assert batch.pixel_values[0, :, 0, 0, 0].tolist() == [8, 0, 0]


def test_the_text_encoder_makes_records_and_prompts_of_one_format() -> None:
    encoder = TextEncoder(ChatPrompt(byte_level(QWEN2)), image_tokens=4, max_text_length=30, targets="text")
    record = encoder.record(Record("r", (("What?", "It is blue."), ("Sure?", "It is blue. " * 9))))
    question = encoder.question(Question("q", "i", (("What?", "It is blue."),), "Sure?", ("yes",), "kind"))
    assert record.ids.count(encoder.prompt.image_id) == question.ids.count(encoder.prompt.image_id) == 4
    assert record.cut > 0
    assert question.cut == 0
    assert record.is_target[-1]


def test_what_a_text_limit_cuts_is_counted_without_pictures() -> None:
    source = PlainSource(6, broken=0)
    prompt = ChatPrompt(byte_level(QWEN2))
    unlimited = TextEncoder(prompt, image_tokens=2)
    lengths = sorted(len(unlimited.record(source.record(index, 0)).ids) - 2 for index in range(6))
    assert count_cut(source, unlimited.record) == CutCount(6, 0, 0, 0)
    encoder = TextEncoder(prompt, image_tokens=2, max_text_length=lengths[-1] - 1)
    assert count_cut(source, encoder.record) == CutCount(6, 2, 2, 0)
    encoder = TextEncoder(prompt, image_tokens=2, max_text_length=5)
    assert count_cut(source, encoder.record, at_most=4) == CutCount(
        4, 4, sum(len(unlimited.record(source.record(index, 0)).ids) - 7 for index in (0, 2, 3, 5)), 4
    )
    assert source.read == []


def test_long_texts_at_the_end_of_a_file_are_counted() -> None:
    """A file may be sorted by length, or by language."""

    class Sorted(PlainSource):
        def record(self, index: int, epoch: int) -> Record:
            return Record("", (("what?", "grey" if index < 300 else "very long grey"),))

    def cut_to_two(record: Record) -> Encoded:
        ids = list(range(len(record.turns[0][1].split())))
        return Encoded(ids[:2], [True] * len(ids[:2]), cut=max(0, len(ids) - 2))

    assert count_cut(Sorted(3000), cut_to_two, at_most=200) == CutCount(200, 180, 180, 0)


def test_a_question_s_picture_is_found_without_a_search() -> None:
    """The least source there is, whose ids of pictures are asked once a record."""

    class Least(DataSource):
        name, asked = "least", 0

        def __len__(self) -> int:
            return 300

        def record(self, index: int, epoch: int) -> Record:
            return Record(str(index), (("what?", "grey"),))

        def panorama(self, index: int) -> np.ndarray:
            return np.full((8, 16, 3), index // 2 % 256, np.uint8)

        def picture(self, index: int) -> str:
            return f"picture {index // 2}"

        def image_id(self, index: int) -> str:
            self.asked += 1
            return str(index // 2)

    source = Least()
    dataset = QuestionDataset(source, PlainCrop(), encode_question)
    views = [dataset[at].views for at in range(300)]
    assert [int(one.max()) for one in views if one is not None] == [at // 2 for at in range(300)]
    assert source.question_picture(dataset.questions[299]) == "picture 149"
    assert source.asked <= 2 * 300
