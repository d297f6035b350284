"""SAM 2 by decoders whose right answer is known."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from torchvision.transforms import Normalize, Resize
from torchvision.transforms.functional import to_tensor

from lmm_classifier.corpus.images import open_image
from lmm_classifier.errors import ConfigError, ModelError, ModelUnavailableError
from lmm_classifier.masks import tight_box, to_png
from lmm_classifier.models import loading
from lmm_classifier.models.runtime import onnx_session
from lmm_classifier.models.segmentation import sam2_onnx
from lmm_classifier.models.segmentation.base import PromptedPhoto, load_segmenter, open_photo
from lmm_classifier.models.spec import ModelSpec
from segmentation_graphs import write_decoder, write_echo, write_encoder

SIZES = [(1, 2000), (2000, 1), (640, 480), (300, 500), (1024, 1024)]


def blocks(*boxes: tuple[int, int, int, int]) -> np.ndarray:
    """Logits (m, 256, 256), 9 inside a box of cells and -9 outside."""
    logits = np.full((len(boxes), 256, 256), -9.0, np.float32)
    for row, (x0, y0, x1, y1) in zip(logits, boxes, strict=True):
        row[y0:y1, x0:x1] = 9
    return logits


RIGHT_HALF = (128, 0, 256, 256)
LOWER_QUARTER = (0, 192, 256, 256)
UPPER_LEFT = (0, 0, 64, 64)


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("sam2") / "encoder.onnx"
    write_encoder(path)
    return path


@pytest.fixture
def folder(tmp_path: Path, encoder: Path) -> Path:
    (tmp_path / "encoder.onnx").symlink_to(encoder)
    write_decoder(tmp_path / "decoder.onnx", blocks(LOWER_QUARTER, RIGHT_HALF, UPPER_LEFT), (0.3, 0.9, 0.6))
    return tmp_path


@pytest.fixture
def echo(tmp_path: Path, encoder: Path) -> Path:
    folder = tmp_path / "echo"
    folder.mkdir()
    (folder / "encoder.onnx").symlink_to(encoder)
    write_echo(folder / "decoder.onnx", reach=64)
    return folder


@pytest.fixture
def fed(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """What is handed to onnxruntime, call by call."""
    calls: list[dict[str, Any]] = []
    run = onnx_session.run_session

    def recording(session: Any, outputs: Any, inputs: Any, weights: str, what: str) -> Any:
        calls.append(dict(inputs))
        return run(session, outputs, inputs, weights, what)

    monkeypatch.setattr(onnx_session, "run_session", recording)
    return calls


def photo(folder: Path | str, size: tuple[int, int] = (640, 480)) -> PromptedPhoto:
    return open_photo(ModelSpec("sam2", str(folder)), Image.new("RGB", size, (90, 60, 30)))


def refusal(weights: Path | str, error: type[Exception] = ModelError, **spec: Any) -> str:
    loading.reset()
    with pytest.raises(error) as caught:
        load_segmenter(ModelSpec("sam2", str(weights), **spec))
    assert "\n" not in str(caught.value)
    return str(caught.value)


class TestPrompts:
    @pytest.mark.parametrize("size", SIZES)
    def test_without_a_prompt_the_centre_is_meant(
        self, folder: Path, fed: Any, size: tuple[int, int]
    ) -> None:
        photo(folder, size).masks()
        np.testing.assert_allclose(fed[-1]["point_coords"], [[[512, 512]]])
        np.testing.assert_array_equal(fed[-1]["point_labels"], [[1]])

    @pytest.mark.parametrize("size", [(640, 480), (300, 500), (2000, 40)])
    @pytest.mark.parametrize("at", [(0.1, 0.2), (0.5, 0.5), (0.8, 0.3)])
    def test_a_point_is_where_it_was_put(self, echo: Path, size: Any, at: Any) -> None:
        """The decoder answers with a square around the point, 1/16 of the input's side to each side."""
        x, y = size[0] * at[0], size[1] * at[1]
        [found] = photo(echo, size).masks(point=(x, y))
        box = tight_box(found.mask)
        expected = [x - size[0] / 16, y - size[1] / 16, x + size[0] / 16, y + size[1] / 16]
        assert box is not None
        assert np.abs(np.asarray(box) - expected).max() <= 1

    @pytest.mark.parametrize("point", [(-1, 5), (640, 5), (5, 480), (5, -0.1), (1e9, 5)])
    def test_a_point_outside_the_photo_is_refused(self, folder: Path, point: Any) -> None:
        with pytest.raises(
            ConfigError, match=r"point \(.*\) is outside what is looked at, \(0, 0, 640, 480\)"
        ):
            photo(folder).masks(point=point)
        with pytest.raises(ConfigError, match="outside"):
            photo(folder).masks(point=(5, 5), negative_points=[point])

    @pytest.mark.parametrize(("box", "form"), [((64, 48, 320, 120), "xywh"), ((64, 48, 384, 168), "xyxy")])
    def test_a_box_is_two_labelled_corners(self, folder: Path, fed: Any, box: Any, form: Any) -> None:
        photo(folder).masks(box=box, box_format=form)
        corners = [[64 * 1.6, 48 * 1024 / 480], [384 * 1.6, 168 * 1024 / 480]]
        np.testing.assert_allclose(fed[-1]["point_coords"], [corners], rtol=1e-6)
        np.testing.assert_array_equal(fed[-1]["point_labels"], [[2, 3]])

    def test_a_box_is_cut_off_at_the_edge_of_the_photo(self, folder: Path, fed: Any) -> None:
        photo(folder).masks(box=(-50, -50, 5000, 290))
        np.testing.assert_allclose(fed[-1]["point_coords"], [[[0, 0], [1024, 512]]])

    @pytest.mark.parametrize(
        ("prompt", "message"),
        [
            ({"box": (5, 5, 0, 10)}, "is empty as xywh"),
            ({"box": (5, 5, 10, -10)}, "is empty as xywh"),
            ({"box": (50, 5, 10, 10), "box_format": "xyxy"}, "is empty as xyxy"),
            ({"box": (700, 5, 10, 10)}, "is outside what is looked at"),
            ({"box": (5, 5, 10)}, "box.3: Field required"),
            ({"box": (5, 5, 10, float("nan"))}, "box.3: Input should be a finite number"),
            ({"box": (5, 5, 10, 10), "box_format": "cxcywh"}, "box_format: Input should be 'xywh' or 'xyxy'"),
            ({"point": ("a", 5)}, "points.0.0: Input should be a valid number"),
            ({"negative_points": [(5, 5)]}, "negative_points say what is not meant; add points or a box"),
        ],
    )
    def test_bad_prompts_get_one_clear_line(self, folder: Path, prompt: dict[str, Any], message: str) -> None:
        with pytest.raises(ConfigError) as caught:
            photo(folder).masks(**prompt)
        assert message in str(caught.value)
        assert "\n" not in str(caught.value)

    def test_points_inside_points_outside_and_a_box_go_together(self, folder: Path, fed: Any) -> None:
        opened = photo(folder, (1024, 1024))
        points = {"points": [(10, 20), (30, 40)], "negative_points": [(50, 60)]}
        opened.masks(**points)
        np.testing.assert_allclose(fed[-1]["point_coords"], [[[10, 20], [30, 40], [50, 60]]])
        np.testing.assert_array_equal(fed[-1]["point_labels"], [[1, 1, 0]])
        opened.masks(**points, box=(1, 2, 3, 4))
        np.testing.assert_array_equal(fed[-1]["point_labels"], [[2, 3, 1, 1, 0]])
        opened.masks(box=(1, 2, 3, 4), negative_points=[(50, 60)])
        np.testing.assert_array_equal(fed[-1]["point_labels"], [[2, 3, 0]])
        opened.masks(points=[])  # as without a prompt
        np.testing.assert_allclose(fed[-1]["point_coords"], [[[512, 512]]])

    def test_an_earlier_mask_is_gone_on_from(self, folder: Path, fed: Any) -> None:
        opened = photo(folder)
        [first] = opened.masks(point=(5, 5))
        assert (fed[-1]["has_mask_input"].tolist(), fed[-1]["mask_input"].any()) == ([0], False)
        [second] = opened.masks(point=(5, 5), previous=first)
        assert fed[-1]["has_mask_input"].tolist() == [1]
        np.testing.assert_array_equal(fed[-1]["mask_input"][0, 0], first.logits)
        np.testing.assert_array_equal(second.logits, 2 * first.logits)
        with pytest.raises(ConfigError, match="needs a point or a box beside it"):
            opened.masks(previous=first)

    def test_a_photo_is_encoded_once(self, folder: Path, fed: Any) -> None:
        opened = photo(folder)
        for x in range(5):
            opened.masks(point=(x, 5))
        assert [("image" in call) for call in fed] == [True] + [False] * 5


class TestAnswers:
    def test_all_candidates_come_best_first_or_only_the_best(self, folder: Path) -> None:
        opened = photo(folder, (400, 200))
        assert [m.score for m in opened.masks(multimask=True)] == pytest.approx([0.9, 0.6, 0.3])
        assert [m.score for m in opened.masks(multimask=True, min_score=0.6)] == pytest.approx([0.9, 0.6])
        assert [m.score for m in opened.masks()] == pytest.approx([0.9])
        assert opened.masks(min_score=0.95) == []
        boxes = [tight_box(m.mask) for m in opened.masks(multimask=True)]
        assert boxes == [(200, 0, 400, 200), (0, 0, 100, 50), (0, 150, 400, 200)]

    def test_stability_is_the_share_of_a_mask_that_another_threshold_leaves(self, folder: Path) -> None:
        """By hand: 100 cells surely inside, 60 that a shift of the threshold by 1 takes, 40 that it adds."""
        logits = np.full((256, 256), -9, np.float32)
        logits[0, :100], logits[1, :60], logits[2, :40] = 9, 0.5, -0.5
        write_decoder(folder / "soft.onnx", np.stack([logits, np.full_like(logits, -9)]), (0.9, 0.8))
        found = photo(f"{folder}#encoder.onnx,soft.onnx").masks(multimask=True)
        assert [mask.stability for mask in found] == [100 / 200, 0.0]

    def test_of_equally_good_masks_the_first_is_taken(self, folder: Path) -> None:
        write_decoder(folder / "tie.onnx", blocks(UPPER_LEFT, RIGHT_HALF, LOWER_QUARTER), (0.5, 0.9, 0.9))
        [found] = photo(f"{folder}#encoder.onnx,tie.onnx", (256, 256)).masks()
        assert tight_box(found.mask) == RIGHT_HALF

    def test_a_score_may_exceed_1(self, folder: Path) -> None:
        write_decoder(folder / "sure.onnx", blocks(RIGHT_HALF), (1.02,))
        [found] = photo(f"{folder}#encoder.onnx,sure.onnx").masks()
        assert found.score == pytest.approx(1.02)

    @pytest.mark.parametrize("size", [*SIZES, (333, 77)])
    def test_a_mask_has_the_size_of_the_photo_and_its_edge_where_it_is(
        self, folder: Path, size: tuple[int, int]
    ) -> None:
        found = photo(folder, size).masks(multimask=True)
        width, height = size
        for mask, (x0, y0, x1, y1) in zip(found, (RIGHT_HALF, UPPER_LEFT, LOWER_QUARTER), strict=True):
            assert (mask.mask.shape, mask.mask.dtype) == ((height, width), np.bool_)
            x, y = np.meshgrid(np.arange(width) + 0.5, np.arange(height) + 0.5)  # centres of pixels
            x, y = x * 256 / width, y * 256 / height
            inside = (x > x0) & (x < x1) & (y > y0) & (y < y1)
            near = np.minimum.reduce([np.abs(x - x0), np.abs(x - x1), np.abs(y - y0), np.abs(y - y1)]) < 0.51
            np.testing.assert_array_equal(mask.mask[~near], inside[~near])
            assert set(np.unique(np.asarray(open_image(to_png(mask.mask))))) <= {0, 255}

    def test_a_mask_is_upsampled_before_it_is_cut(self, folder: Path) -> None:
        """A slanted edge: of cells thresholded first, the photo would show steps of 8 px."""
        cells = np.arange(256) + 0.5
        slope = (cells[None, :] - cells[:, None]) + 0.25  # positive right of the diagonal
        write_decoder(folder / "slope.onnx", slope[None], (0.9,))
        [found] = photo(f"{folder}#encoder.onnx,slope.onnx", (2048, 2048)).masks()
        pixel = (np.arange(2048) + 0.5) / 8
        inside = (pixel[None, :] - pixel[:, None]) + 0.25 > 0
        inner = slice(8, -8)  # at the rim cells are repeated
        np.testing.assert_array_equal(found.mask[inner, inner], inside[inner, inner])


class TestGraphs:
    def test_the_default_weights_are_those_of_the_tiny_model(self, monkeypatch: pytest.MonkeyPatch) -> None:
        assert sam2_onnx.DEFAULT_WEIGHTS == "SharpAI/sam2-hiera-tiny-onnx"
        assert sam2_onnx.FILES == ("encoder.onnx", "decoder.onnx")
        message = refusal("", ModelUnavailableError)
        assert message.startswith("model 'SharpAI/sam2-hiera-tiny-onnx' is neither on this machine nor")

    def test_inputs_and_outputs_are_bound_by_name_in_any_order(self, folder: Path) -> None:
        logits, scores = blocks(LOWER_QUARTER, RIGHT_HALF, UPPER_LEFT), (0.3, 0.9, 0.6)
        write_decoder(folder / "reversed.onnx", logits, scores, reverse=True)
        for name in ("decoder.onnx", "reversed.onnx"):
            [found] = photo(f"{folder}#encoder.onnx,{name}", (256, 256)).masks()
            assert tight_box(found.mask) == RIGHT_HALF

    def test_a_third_output_is_left_alone(self, folder: Path) -> None:
        outputs = {
            "masks": ["B", 1, 256, 256],
            "iou_predictions": ["B", 1],
            "low_res_masks": ["B", 1, 256, 256],
        }
        write_decoder(folder / "third.onnx", blocks(RIGHT_HALF), (0.9,), outputs=outputs)
        assert len(photo(f"{folder}#encoder.onnx,third.onnx").masks()) == 1

    def test_other_names_and_shapes_are_refused(self, folder: Path) -> None:
        logits = blocks(RIGHT_HALF)
        write_decoder(folder / "a.onnx", logits, (0.9,), rename={"point_coords": "coords"})
        message = refusal(f"{folder}#encoder.onnx,a.onnx")
        assert (
            "has the inputs image_embed, high_res_feats_0, high_res_feats_1, coords, point_labels" in message
        )
        assert "expected are high_res_feats_0, high_res_feats_1, image_embed, point_coords" in message
        write_decoder(folder / "b.onnx", logits, (0.9,), rename={"iou_predictions": "iou"})
        assert "has the outputs masks, iou; expected are masks, iou_pred" in refusal(
            f"{folder}#encoder.onnx,b.onnx"
        )
        big = {"masks": ["B", 1, 1024, 1024], "iou_predictions": ["B", 1]}
        write_decoder(folder / "c.onnx", np.zeros((1, 1024, 1024), np.float32), (0.9,), outputs=big)
        # the graph itself contradicts the shape of mask_input, or declares another one than we expect
        assert "c.onnx" in refusal(f"{folder}#encoder.onnx,c.onnx")
        assert "has the inputs" in refusal(f"{folder}#decoder.onnx,encoder.onnx")

    def test_another_input_size_is_refused(self, folder: Path) -> None:
        write_encoder(folder / "small.onnx", side=512)
        assert refusal(f"{folder}#small.onnx,decoder.onnx") == (
            f"model '{folder}/small.onnx': input 'image' is tensor(float) [1, 3, 512, 512]; "
            "expected is tensor(float) [1, 3, 1024, 1024]"
        )

    def test_the_two_files_may_be_named(self, folder: Path) -> None:
        (folder / "sub").mkdir()
        (folder / "decoder.onnx").rename(folder / "sub/other.onnx")
        assert len(photo(f"{folder}#encoder.onnx,sub/other.onnx").masks()) == 1
        assert "has no file 'decoder.onnx'" in refusal(folder, ModelUnavailableError)
        for names in ("encoder.onnx", "a,b,c", "", "encoder.onnx,../x.onnx", "encoder.onnx,/x.onnx"):
            assert "must name 2 files of the folder after #" in refusal(f"{folder}#{names}")

    @pytest.mark.parametrize("content", [b"", b"no model"])
    def test_a_damaged_file_is_named(self, folder: Path, content: bytes) -> None:
        (folder / "decoder.onnx").write_bytes(content)
        assert "decoder.onnx' cannot be opened as 'sam2': " in refusal(folder)

    @pytest.mark.parametrize("spec", [{"device": "cuda"}, {"dtype": "bfloat16"}, {"compile": True}])
    def test_what_the_files_decide_is_refused(self, folder: Path, spec: dict[str, Any]) -> None:
        assert "leave" in refusal(folder, **spec)

    @pytest.mark.parametrize("size", [(1, 2000), (300, 500), (2000, 1500)])
    def test_the_photo_is_stretched_to_the_square_input(
        self, folder: Path, fed: Any, size: tuple[int, int], noise: Callable[..., Image.Image]
    ) -> None:
        image = noise(*size)
        open_photo(ModelSpec("sam2", str(folder)), image)
        resized = Resize((1024, 1024), antialias=True)(to_tensor(image))
        expected = Normalize([0.485, 0.456, 0.406], [0.229, 0.224, 0.225])(resized).numpy()
        one_level = 1 / 255 / 0.224
        assert fed[-1]["image"].shape == (1, 3, 1024, 1024)
        assert fed[-1]["image"].dtype == np.float32
        assert np.abs(fed[-1]["image"][0] - expected).max() <= 1.01 * one_level


@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_mask_belongs_to_the_upright_photo(folder: Path, tmp_path: Path, orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.new("RGB", (60, 40)).save(tmp_path / "turned.jpg", exif=exif)
    image = open_image(tmp_path / "turned.jpg")
    assert image.size == ((60, 40) if orientation <= 4 else (40, 60))
    [found] = open_photo(ModelSpec("sam2", str(folder)), image).masks()
    assert tight_box(found.mask) == (image.width // 2, 0, *image.size)
