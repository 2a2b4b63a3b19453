import pytest
import torch
from torch import nn

from dreamda_aug.amst import AMSTWrapper, CLIPClassifier, SeedLabeler, SingleHeadLabeler


class Fixed(nn.Module):
    """Answers with the same logits, whatever it sees."""

    def __init__(self, logits):
        super().__init__()
        self.logits = nn.Parameter(torch.tensor(logits))
        self.norm = nn.BatchNorm2d(1)

    def forward(self, images):
        return self.logits + 0 * self.norm(images).mean()


LOG_9 = 2.1972246  # softmax([0, ln 9]) = [0.1, 0.9]


def test_seed_labels_are_accepted_where_known():
    result = SeedLabeler().label(torch.rand(3, 1, 4, 4), torch.tensor([2, -1, 0]))
    assert result.mask.tolist() == [True, False, True]
    assert result.labels[result.mask].tolist() == [2, 0]
    assert result.confidence.tolist() == [1, 0, 1]


def test_missing_seed_labels_are_refused():
    with pytest.raises(ValueError, match=r"needs seed_labels of shape \(3,\), got none"):
        SeedLabeler().label(torch.rand(3, 1, 4, 4))
    with pytest.raises(ValueError, match=r"got shape \(2,\)"):
        SeedLabeler().label(torch.rand(3, 1, 4, 4), torch.tensor([0, 1]))


def test_hard_labels_pass_a_threshold_and_soft_ones_are_probabilities():
    model, images = Fixed([[0.0, LOG_9], [0.0, 0.0]]).train(), torch.rand(2, 1, 4, 4)
    hard = SingleHeadLabeler(model, confidence_threshold=0.8).label(images)
    assert hard.labels.tolist()[0] == 1 and hard.mask.tolist() == [True, False]
    torch.testing.assert_close(hard.confidence, torch.tensor([0.9, 0.5]))
    assert not SingleHeadLabeler(model).label(images).mask.any(), "0.95 is the default"
    soft = SingleHeadLabeler(model, soft=True).label(images)
    torch.testing.assert_close(soft.labels, torch.tensor([[0.1, 0.9], [0.5, 0.5]]))
    assert soft.mask.all() and soft.hard_labels.tolist()[0] == 1
    assert model.training and not model.norm.running_mean.any()


def test_a_wrapper_labels_with_its_main_head():
    model = nn.Sequential(nn.Flatten(), nn.Linear(16, 3))
    images = torch.rand(4, 1, 4, 4)
    labels = SingleHeadLabeler(AMSTWrapper(model), 0.0).label(images).labels
    assert torch.equal(labels, model(images).argmax(1))


def test_a_classifier_that_answers_nan_is_refused():
    with pytest.raises(ValueError, match="logits are nan or infinite"):
        SingleHeadLabeler(Fixed([[float("nan"), 0.0]])).label(torch.rand(1, 1, 4, 4))
    with pytest.raises(ValueError, match=r"confidence_threshold .* got 95"):
        SingleHeadLabeler(Fixed([[0.0, 0.0]]), confidence_threshold=95)


def test_a_classifier_of_one_logit_is_refused():
    with pytest.raises(ValueError, match=r"at least two, got 1. .*nn.Linear\(features, 2\)"):
        SingleHeadLabeler(Fixed([[0.3]])).label(torch.rand(1, 1, 4, 4))


# --- CLIP --------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def clip_folder(tmp_path_factory):
    """A CLIP of a few thousand weights with a tokenizer that knows single letters."""
    transformers = pytest.importorskip("transformers", reason="transformers is an extra")
    letters = [chr(code) for code in range(33, 127)]
    pieces = letters + [letter + "</w>" for letter in letters]
    vocabulary = {piece: number for number, piece in enumerate(pieces)}
    for piece in ("<|startoftext|>", "<|endoftext|>"):
        vocabulary[piece] = len(vocabulary)
    tokenizer = transformers.CLIPTokenizer(vocab=vocabulary, merges=[])
    tokenizer.model_max_length = 24
    shared = {
        "hidden_size": 16, "intermediate_size": 32,
        "num_attention_heads": 2, "num_hidden_layers": 1,
    }  # fmt: skip
    end = vocabulary["<|endoftext|>"]
    config = transformers.CLIPConfig(
        text_config=shared | {"vocab_size": len(vocabulary), "max_position_embeddings": 24,
                              "eos_token_id": end, "bos_token_id": end - 1, "pad_token_id": end},
        vision_config=shared | {"image_size": 16, "patch_size": 8},
        projection_dim=8,
    )  # fmt: skip
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("clip")
    transformers.CLIPModel(config).save_pretrained(folder)
    images = transformers.CLIPImageProcessor(size={"shortest_edge": 16}, crop_size=16)
    transformers.CLIPProcessor(images, tokenizer).save_pretrained(folder)
    return folder


NAMES = ["cat", "dog", "tabby_cat"]


def test_clip_labels_are_those_of_the_model_itself(clip_folder):
    import transformers

    classifier = CLIPClassifier(NAMES, str(clip_folder))
    images = torch.rand(5, 3, 16, 16)
    result = SingleHeadLabeler(classifier, soft=True).label(images)
    model = transformers.CLIPModel.from_pretrained(clip_folder).eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(clip_folder)
    prompts = ["A photo of a cat.", "A photo of a dog.", "A photo of a tabby cat."]
    tokens = tokenizer(prompts, padding=True, truncation=True, return_tensors="pt")
    mean = torch.tensor([0.48145466, 0.4578275, 0.40821073])[:, None, None]
    std = torch.tensor([0.26862954, 0.26130258, 0.27577711])[:, None, None]
    with torch.no_grad():
        logits = model(**tokens, pixel_values=(images - mean) / std).logits_per_image
    torch.testing.assert_close(result.labels, logits.softmax(1), atol=1e-4, rtol=1e-4)
    hard = SingleHeadLabeler(classifier, confidence_threshold=0.0).label(images)
    assert torch.equal(hard.labels, logits.argmax(1)) and hard.mask.all()


@pytest.mark.parametrize("shape", [(2, 1, 8, 8), (2, 3, 40, 30), (0, 3, 16, 16)])
def test_clip_takes_grey_images_and_any_size(clip_folder, shape):
    assert CLIPClassifier(NAMES, str(clip_folder))(torch.rand(shape)).shape == (shape[0], 3)


def test_clip_refuses_what_it_cannot_use(clip_folder):
    with pytest.raises(ValueError, match="class_names must be at least two names, got 'cat'"):
        CLIPClassifier("cat", str(clip_folder))
    with pytest.raises(ValueError, match=r"prompt must contain \{\}"):
        CLIPClassifier(NAMES, str(clip_folder), prompt="a photo")
    with pytest.raises(ValueError, match=r"must lie in \[0, 1\] and not be normalised"):
        CLIPClassifier(NAMES, str(clip_folder))(torch.randn(2, 3, 16, 16) * 4)
