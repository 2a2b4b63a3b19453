import pytest
import torch
from diffusers import DDPMScheduler

from dreamda_aug.adaptation.objective import HeldOut, add_noise, noise_levels, spread_levels
from dreamda_aug.method.schedule import NoiseSchedule
from dreamda_aug.models.unet import PixelModel


def rows(count):
    generator = torch.Generator().manual_seed(1)
    return torch.randn(2, count, 1, 4, 4, generator=generator)


@pytest.mark.parametrize("predicts", ["epsilon", "v_prediction", "sample"])
def test_noise_and_target_are_those_of_diffusers(pixel_model, predicts):
    scheduler = DDPMScheduler(prediction_type=predicts, clip_sample=False)
    schedule = noise_levels(pixel_model(predicts))
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


@pytest.fixture
def pixel_model():
    from pipelines import pixel_pipeline

    return lambda predicts: PixelModel(pixel_pipeline(predicts))


def test_levels_cover_the_whole_range_in_any_order():
    levels = spread_levels(8, 80, torch.Generator().manual_seed(0))
    assert sorted(level // 10 for level in levels.tolist()) == list(range(8))
    assert levels.tolist() != sorted(levels.tolist())


def test_held_out_losses_depend_on_the_image_alone(pixel_model):
    model = pixel_model("epsilon")
    schedule = noise_levels(model)
    x_0 = torch.rand(3, 1, 16, 16)

    def losses(count, batch_size):
        held_out = HeldOut.draw(x_0[:count], torch.full((count,), -1), len(schedule), 0)
        return held_out.losses(lambda x, t, labels: model.predict(x, t, {}), schedule,
                               torch.device("cpu"), batch_size)

    torch.testing.assert_close(losses(3, 7), losses(3, 32))
    torch.testing.assert_close(losses(2, 32), losses(3, 32)[:2])
