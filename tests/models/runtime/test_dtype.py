"""Which arithmetic `dtype: auto` means, on which hardware."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from lmm_classifier.models.loading import load_encoder
from lmm_classifier.models.runtime.pretrained import dtype_of
from lmm_classifier.models.spec import ModelSpec

CPUINFO = Path("/proc/cpuinfo")


class TestAutomaticDtype:
    @pytest.mark.skipif(not CPUINFO.exists(), reason="the kernel's word on the processor is Linux's")
    def test_on_the_processor_is_bfloat16_where_the_kernel_lists_the_instructions(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
        flags = set(CPUINFO.read_text(encoding="utf-8").split())
        expected = torch.bfloat16 if flags & {"avx512_bf16", "amx_bf16"} else torch.float32
        assert dtype_of(ModelSpec("siglip")) == dtype_of(ModelSpec("siglip", device="cpu")) == expected

    @pytest.mark.parametrize(
        ("capabilities", "expected"),
        [
            ({"avx512_bf16": True, "amx_bf16": False}, torch.bfloat16),
            ({"avx512_bf16": False, "amx_bf16": True}, torch.bfloat16),
            ({"avx512_bf16": False, "amx_bf16": False, "avx512_f": True}, torch.float32),
            ({"neon": True}, torch.float32),
        ],
    )
    def test_follows_what_torch_says_of_the_processor(
        self, capabilities: dict[str, bool], expected: torch.dtype, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: capabilities, raising=False)
        assert dtype_of(ModelSpec("siglip", device="cpu")) == expected

    @pytest.mark.parametrize("questions", [(True, False), (False, True), (False, False)])
    def test_follows_the_older_questions_where_torch_has_no_others(
        self, questions: tuple[bool, bool], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.delattr(torch.cpu, "get_capabilities", raising=False)
        monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: questions[0])
        monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: questions[1])
        expected = torch.bfloat16 if any(questions) else torch.float32
        assert dtype_of(ModelSpec("siglip", device="cpu")) == expected

    def test_on_graphics_processors(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
        monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
        assert dtype_of(ModelSpec("siglip")) == torch.float32
        monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
        assert dtype_of(ModelSpec("siglip")) == torch.bfloat16

    def test_never_overrules_what_is_asked_for(self, siglip_folder: Path) -> None:
        for dtype in ("float32", "bfloat16", "float16"):
            contract = load_encoder(ModelSpec("siglip", str(siglip_folder), dtype=dtype)).contract
            assert contract.dtype == dtype
