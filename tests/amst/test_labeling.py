"""Who labels a pool, and what a round reports."""

import pytest
import torch
from torch import nn

from dreamda_aug.amst import CLIPClassifier, PseudoLabels, SeedLabeler, SingleHeadLabeler
from dreamda_aug.amst.labeling import CollapseWarning, RoundReport


@pytest.mark.parametrize(("counts", "message"), [
    ((0, 0, 0, 0), "no image of 100 was accepted"),
    ((10, 0, 10, 10), r"miss the classes \[1\]"),
    ((80, 5, 5, 10), r"crowd into class 0 \(80%, expected 25%\)"),
])
def test_collapse_is_warned_of(counts, message):
    with pytest.warns(CollapseWarning, match=message):
        RoundReport(0, 100, 1.0, 1.0, counts).warn_of_collapse()


@pytest.mark.filterwarnings("error")
def test_a_report_counts_by_hand():
    labels = PseudoLabels(
        labels=torch.tensor([0, 1, 1, 2]), confidence=torch.tensor([1.0, 0.8, 0.6, 0.4]),
        agreement=torch.tensor([1.0, 1.0, 1.0, 0.5]),
        mask=torch.tensor([True, True, False, False]))
    report = RoundReport.of(
        3, labels, torch.tensor([0, 0, -1, 2]), torch.tensor([0, 1, 0, -1]), 3)
    assert report.class_counts == (1, 1, 0) and report.accepted_share == 0.5
    assert report.agreement == 0.75 and report.confidence == pytest.approx(0.7)
    assert report.seed_label_agreement == 0.5 and report.accuracy == 1.0
    RoundReport(0, 100, 1.0, 1.0, (30, 10, 20)).warn_of_collapse()  # balanced: no warning


# --- other labelers


class Fixed(nn.Module):
    """Answers with the same logits, whatever it sees."""

    def __init__(self, logits):
        super().__init__()
        self.logits = torch.tensor(logits)

    def forward(self, images):
        return self.logits


LOG_9 = 2.1972246  # softmax([0, ln 9]) = [0.1, 0.9]


def test_seed_labels_are_accepted_where_known():
    images = torch.rand(3, 1, 4, 4)
    result = SeedLabeler().label(images, torch.tensor([2, -1, 0]))
    assert result.mask.tolist() == [True, False, True]
    assert result.labels[result.mask].tolist() == [2, 0]
    assert result.confidence.tolist() == [1, 0, 1]
    for wrong, found in ((None, "none"), (torch.tensor([0, 1]), r"shape \(2,\)")):
        with pytest.raises(ValueError, match=rf"seed_labels of shape \(3,\), got {found}"):
            SeedLabeler().label(images, wrong)


def test_hard_labels_pass_a_threshold_and_soft_ones_are_probabilities():
    model, images = Fixed([[0.0, LOG_9], [0.0, 0.0]]), torch.rand(2, 1, 4, 4)
    hard = SingleHeadLabeler(model, confidence_threshold=0.8).label(images)
    assert hard.labels.tolist()[0] == 1 and hard.mask.tolist() == [True, False]
    torch.testing.assert_close(hard.confidence, torch.tensor([0.9, 0.5]))
    assert not SingleHeadLabeler(model).label(images).mask.any(), "0.95 is the default"
    soft = SingleHeadLabeler(model, soft=True).label(images)
    torch.testing.assert_close(soft.labels, torch.tensor([[0.1, 0.9], [0.5, 0.5]]))
    assert soft.mask.all() and soft.hard_labels.tolist()[0] == 1


def test_a_classifier_that_cannot_label_is_refused():
    images = torch.rand(1, 1, 4, 4)
    with pytest.raises(ValueError, match="logits are nan or infinite"):
        SingleHeadLabeler(Fixed([[float("nan"), 0.0]])).label(images)


# --- CLIP


@pytest.fixture(scope="module")
def clip_folder(tmp_path_factory):
    """A CLIP of a few thousand weights with a tokenizer that knows single letters."""
    transformers = pytest.importorskip("transformers", reason="transformers is an extra")
    letters = [chr(code) for code in range(33, 127)]
    pieces = [*letters, *(letter + "</w>" for letter in letters), "<|startoftext|>",
              "<|endoftext|>"]
    tokenizer = transformers.CLIPTokenizer(
        vocab={piece: number for number, piece in enumerate(pieces)}, merges=[])
    tokenizer.model_max_length, end = 24, len(pieces) - 1
    shared = {"hidden_size": 16, "intermediate_size": 32, "num_attention_heads": 2,
              "num_hidden_layers": 1}
    config = transformers.CLIPConfig(
        text_config=shared | {"vocab_size": len(pieces), "max_position_embeddings": 24,
                              "eos_token_id": end, "bos_token_id": end - 1, "pad_token_id": end},
        vision_config=shared | {"image_size": 16, "patch_size": 8}, projection_dim=8)
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("clip")
    transformers.CLIPModel(config).save_pretrained(folder)
    images = transformers.CLIPImageProcessor(size={"shortest_edge": 16}, crop_size=16)
    transformers.CLIPProcessor(images, tokenizer).save_pretrained(folder)
    return folder


NAMES = ["cat", "dog", "tabby_cat"]


def test_clip_labels_are_those_of_the_model_itself(clip_folder):
    import transformers

    images = torch.rand(5, 3, 16, 16)
    found = CLIPClassifier(NAMES, str(clip_folder))(images)
    model = transformers.CLIPModel.from_pretrained(clip_folder).eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(clip_folder)
    prompts = ["A photo of a cat.", "A photo of a dog.", "A photo of a tabby cat."]
    tokens = tokenizer(prompts, padding=True, truncation=True, return_tensors="pt")
    mean = torch.tensor([0.48145466, 0.4578275, 0.40821073])[:, None, None]
    std = torch.tensor([0.26862954, 0.26130258, 0.27577711])[:, None, None]
    with torch.no_grad():
        expected = model(**tokens, pixel_values=(images - mean) / std).logits_per_image
    torch.testing.assert_close(found, expected, atol=1e-3, rtol=1e-4)


def test_clip_refuses_what_it_cannot_use(clip_folder):
    with pytest.raises(ValueError, match=r"class_names must be at least two names, got \['cat'\]"):
        CLIPClassifier(["cat"], str(clip_folder))
    with pytest.raises(ValueError, match=r"prompt must contain \{\}"):
        CLIPClassifier(NAMES, str(clip_folder), prompt="a photo")
    with pytest.raises(ValueError, match=r"must lie in \[0, 1\] and not be normalised"):
        CLIPClassifier(NAMES, str(clip_folder))(torch.randn(2, 3, 16, 16) * 4)
