from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import (
    AutoImageProcessor,
    AutoModel,
    AutoModelForImageTextToText,
    AutoProcessor,
    AutoTokenizer,
    Qwen2VLForConditionalGeneration,
    Qwen2VLProcessor,
    SiglipModel,
    SiglipVisionModel,
)

from lmm_classifier.checkpoints import train_qwen2_vl, train_siglip
from lmm_classifier.checkpoints.digits import HELD_OUT, KNOWN_NAMES, scans_in
from lmm_classifier.checkpoints.training import chimeras, known_scans, photos, save
from lmm_classifier.models.vlm.prompts import DEFAULT_PROMPT, render_prompt

SIGLIP, QWEN = train_siglip.OUTPUT, train_qwen2_vl.OUTPUT
MAX_BYTES = 8_000_000
SUFFIXES = {".json", ".jinja", ".md", ".safetensors"}
ZERO_SHOT_BAR = 0.93
CHOICE_BAR = 0.97


def test_both_are_small_and_hold_no_pickle() -> None:
    files = [file for folder in (SIGLIP, QWEN) for file in folder.iterdir()]
    assert sum(file.stat().st_size for file in files) < MAX_BYTES
    assert {file.suffix for file in files} <= SUFFIXES
    assert not [file for file in files if "auto_map" in file.read_bytes().decode(errors="ignore")]


@pytest.mark.parametrize("folder", [SIGLIP, QWEN])
def test_model_card_states_licence_and_held_out_digits(folder: Path) -> None:
    card = (folder / "README.md").read_text("utf-8")
    assert "license: apache-2.0" in card
    assert all(name in card for name in HELD_OUT)


def test_siglip_loads_through_the_auto_classes() -> None:
    assert isinstance(AutoModel.from_pretrained(SIGLIP), SiglipModel)
    vision = SiglipVisionModel.from_pretrained(SIGLIP)
    pixels = AutoImageProcessor.from_pretrained(SIGLIP)(
        photos(known_scans("index").ink[:2]), return_tensors="pt"
    )
    assert vision(**pixels).pooler_output.shape == (2, train_siglip.EMBEDDING)
    ids = AutoTokenizer.from_pretrained(SIGLIP)(["the digit Three"], padding="max_length")["input_ids"]
    assert (
        ids
        == AutoProcessor.from_pretrained(SIGLIP)(text=["the digit three"], padding="max_length")["input_ids"]
    )


def test_siglip_names_digits_it_has_not_seen() -> None:
    model, processor = SiglipModel.from_pretrained(SIGLIP), AutoProcessor.from_pretrained(SIGLIP)
    assert train_siglip.zero_shot_accuracy(model, processor, known_scans("calibration")) >= ZERO_SHOT_BAR


def test_qwen_loads_through_the_auto_classes_and_generates_a_name() -> None:
    model = AutoModelForImageTextToText.from_pretrained(QWEN)
    processor = AutoProcessor.from_pretrained(QWEN)
    assert isinstance(model, Qwen2VLForConditionalGeneration)
    assert isinstance(processor, Qwen2VLProcessor)
    scan = known_scans("calibration")[torch.tensor([0])]
    question = train_qwen2_vl.DigitQuestion(KNOWN_NAMES[:4], KNOWN_NAMES[0])
    text = train_qwen2_vl.conversation(processor, question)
    inputs = processor(text=[text], images=photos(scan.ink), return_tensors="pt")
    assert inputs["image_grid_thw"].tolist() == [[1, 4, 4]]
    tokens = model.generate(**inputs, max_new_tokens=4, do_sample=False)[0, inputs["input_ids"].shape[1] :]
    assert processor.decode(tokens).endswith(train_qwen2_vl.END)


def test_chat_template_writes_the_qwen_form() -> None:
    processor = AutoProcessor.from_pretrained(QWEN)
    question = train_qwen2_vl.DigitQuestion(("two", "six"), "two")
    assert train_qwen2_vl.conversation(processor, question) == (
        "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n"
        "<|im_start|>user\n<|vision_start|><|image_pad|><|vision_end|>"
        f"{render_prompt(DEFAULT_PROMPT, ('two', 'six'))}<|im_end|>\n"
        "<|im_start|>assistant\n"
    )


def test_qwen_picks_the_right_one_of_three() -> None:
    assert train_qwen2_vl.choice_accuracy(QWEN, scans_in("calibration"), seed=1) >= CHOICE_BAR


def test_only_the_answer_counts_in_the_loss() -> None:
    processor = train_qwen2_vl.build_processor()
    questions = [
        train_qwen2_vl.DigitQuestion(("one", "unknown"), "one"),
        train_qwen2_vl.DigitQuestion(KNOWN_NAMES, "six"),
    ]
    _, labels = train_qwen2_vl.encode(processor, known_scans("index").ink[:2], questions, ["one", "six"])
    counted = [row[row != train_qwen2_vl.IGNORED] for row in labels]
    assert [processor.decode(row) for row in counted] == ["one<|im_end|>", "six<|im_end|>"]


def test_every_scan_of_a_name_fits_every_text_with_it() -> None:
    model = train_siglip.build_model(20)
    images = texts = torch.eye(3)
    fits = torch.tensor([[True, True, False], [True, True, False], [False, False, True]])
    logits = model.logit_scale.exp() * torch.eye(3) + model.logit_bias
    expected = -torch.where(fits, logits, -logits).sigmoid().log().sum() / 3
    torch.testing.assert_close(train_siglip.pairwise_loss(model, images, texts, fits), expected)


def test_chimeras_are_ink_on_paper() -> None:
    signs = chimeras(known_scans("index"), 16, torch.Generator().manual_seed(0))
    assert 8 < len(signs) <= 16
    assert signs.min() >= 0
    assert signs.max() <= 1


def test_siglip_training_reduces_the_loss_and_saves_what_it_trained(tmp_path: Path) -> None:
    model, processor, losses = train_siglip.train_siglip(seed=0, steps=24)
    assert losses[-1] < losses[0]
    save(tmp_path, model, processor)
    ink = known_scans("index").ink[:4]
    again = SiglipModel.from_pretrained(tmp_path), AutoProcessor.from_pretrained(tmp_path)
    torch.testing.assert_close(train_siglip.embed(*again, ink), train_siglip.embed(model, processor, ink))


def test_qwen_training_reduces_the_loss_and_saves_what_it_trained(tmp_path: Path) -> None:
    model, processor, losses = train_qwen2_vl.train_qwen2_vl(seed=0, steps=4)
    assert losses[-1] < losses[0]
    save(tmp_path, model, processor)
    ink, question = known_scans("index").ink[:4], train_qwen2_vl.DigitQuestion(("two", "unknown"), "two")
    again = Qwen2VLForConditionalGeneration.from_pretrained(tmp_path), AutoProcessor.from_pretrained(tmp_path)
    logits = []
    for trained, its_processor in (again, (model, processor)):
        inputs, _ = train_qwen2_vl.encode(its_processor, ink, [question] * 4, ["two"] * 4)
        with torch.inference_mode():
            logits.append(trained(**inputs).logits)
    torch.testing.assert_close(*logits)
