"""What is read of the images, what is held out, and what noise is added to the rest."""

import warnings

import PIL.Image
import pytest
import torch
from diffusers import DDPMScheduler
from pipelines import pixel_pipeline

from dreamda_aug.adaptation.training_images import (
    add_noise,
    held_out_losses,
    noise_levels,
    read_images,
    split,
    spread_levels,
)
from dreamda_aug.inputs.seed_images import open_seed_images
from dreamda_aug.method.schedule import NoiseSchedule
from dreamda_aug.models.unet import UNetModel


class Grey:
    name, channels, image_size = "grey", 1, (16, 16)

    def encode(self, images):
        return images * 2 - 1


def read(source, labels="source", budget=1000):
    return read_images(open_seed_images(source, labels=labels), Grey(), 0.2, 0, budget=budget)


def test_class_folders_give_labels_and_some_images_are_held_out(image_folder):
    images = read(image_folder)
    assert images.classes == ["left", "right"]
    assert (len(images.x_0), len(images.held_out)) == (7, 5)
    assert images.x_0.min() >= -1 and images.x_0.max() <= 1
    everything = torch.cat([images.labels, images.held_out_labels])
    assert sorted(everything.tolist()) == [0] * 6 + [1] * 6


def test_labels_none_and_a_flat_folder_are_unlabeled(image_folder):
    for source, labels in ((image_folder, None), (image_folder / "left", "source")):
        images = read(source, labels)
        assert images.classes == [] and set(images.labels.tolist()) == {-1}


def test_each_class_gives_the_same_share_of_its_images():
    labels = torch.tensor([0] * 40 + [1] * 40 + [2] * 20)[torch.randperm(100)]
    train, held_out = split(labels, 0.2)
    assert labels[held_out].bincount().tolist() == [8, 8, 4]
    assert sorted([*train.tolist(), *held_out.tolist()]) == list(range(100))


def test_a_class_of_one_image_is_trained_not_measured():
    train, held_out = split(torch.tensor([0, 0, 0, 1, 0, 0, 0, 0]), 0.2)
    assert 3 in train.tolist() and len(held_out) == 4
    assert not set(train.tolist()) & set(held_out.tolist())


@pytest.mark.parametrize("labels, got", [([-1], "got 1 in 1"), ([0, 1, 2], "got 3 in 3"),
                                         ([0, 1, 2, 2], "got 4 in 3 classes")])
def test_too_few_images_are_refused_with_the_way_out(labels, got):
    with pytest.raises(ValueError, match=f"at least 4 images.*{got}.*--no-early-stopping"):
        split(torch.tensor(labels), 0.2)
    every, none = split(torch.tensor(labels), 0.0)
    assert len(every) == len(labels) and len(none) == 0


def test_no_more_images_are_read_than_steps_can_use():
    images = read(torch.rand(500, 1, 16, 16), None, budget=10)
    assert len(images.x_0) + len(images.held_out) == 10 + 64


def test_the_digest_follows_pixels_and_labels(image_folder):
    first = read(image_folder).digest
    assert read(image_folder).digest == first
    assert read(image_folder, None).digest != first
    PIL.Image.new("L", (16, 16)).save(image_folder / "left" / "0.png")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert read(image_folder).digest != first


def rows(count):
    generator = torch.Generator().manual_seed(1)
    return torch.randn(2, count, 1, 4, 4, generator=generator)


@pytest.mark.parametrize("predicts", ["epsilon", "v_prediction", "sample"])
def test_noise_and_target_are_those_of_diffusers(predicts):
    scheduler = DDPMScheduler(prediction_type=predicts, clip_sample=False)
    schedule = noise_levels(UNetModel(pixel_pipeline(predicts)))
    x_0, eps = rows(5)
    levels = torch.tensor([0, 7, 100, 300, 499])
    found = add_noise(schedule, x_0, eps, levels)
    t = schedule.timesteps[levels]
    torch.testing.assert_close(found.x_t, scheduler.add_noise(x_0, eps, t))
    target = {"epsilon": eps, "sample": x_0}.get(predicts)
    target = scheduler.get_velocity(x_0, eps, t) if target is None else target
    torch.testing.assert_close(found.target, target)


@pytest.mark.parametrize("kind, sigma_data", [
    ("epsilon", 0.5), ("v_prediction", 0.5), ("flow", 0.5), ("edm", 0.5), ("edm", -0.5)])
def test_the_right_answer_leads_back_to_the_clean_image(kind, sigma_data):
    sigmas = torch.tensor([0.9, 0.5, 0.1, 0.0])
    signal = {"flow": 1 - sigmas, "edm": torch.ones(4)}.get(kind, (1 - sigmas**2).sqrt())
    schedule = NoiseSchedule(torch.tensor([900, 500, 100]), signal, sigmas, kind,
                             sigma_data=sigma_data)
    x_0, eps = rows(3)
    found = add_noise(schedule, x_0, eps, torch.tensor([0, 1, 2]))
    for row in range(3):
        x_t = signal[row] * x_0[row] + sigmas[row] * eps[row]
        torch.testing.assert_close(found.x_t[row], schedule.model_input(x_t, row))
        clean, noise = schedule.predictions(found.target[row], x_t, row)
        torch.testing.assert_close(clean, x_0[row], atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(noise, eps[row], atol=1e-5, rtol=1e-5)


def test_levels_cover_the_whole_range_in_any_order():
    levels = spread_levels(8, 80, torch.Generator().manual_seed(0))
    assert sorted(level // 10 for level in levels.tolist()) == list(range(8))
    assert levels.tolist() != sorted(levels.tolist())


def test_held_out_losses_depend_on_the_image_alone():
    model = UNetModel(pixel_pipeline())
    schedule = noise_levels(model)
    x_0 = torch.rand(3, 1, 16, 16)

    def losses(count, batch_size):
        return held_out_losses(lambda x, t, labels: model.predict(x, t, {}), x_0[:count],
                               torch.full((count,), -1), schedule, 0, batch_size)

    torch.testing.assert_close(losses(3, 7), losses(3, 32))
    torch.testing.assert_close(losses(2, 32), losses(3, 32)[:2])
