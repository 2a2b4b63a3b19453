"""Every family of diffusion models, tiny: against its own pipeline, and against itself."""

import pytest

pytest.importorskip("transformers")

from benchmarks.families import checks
from benchmarks.families.own_pipelines import OWN
from benchmarks.families.pipelines import PIPELINES, SIDE
from dreamda_aug import load_model
from dreamda_aug.models.transformer import TransformerModel


@pytest.fixture(scope="module", params=PIPELINES)
def family(request):
    return request.param, load_model(PIPELINES[request.param](), image_size=(SIDE, SIDE),
                                        **checks.options(request.param))


def test_without_noise_and_replay_it_is_the_familys_own_pipeline(family):
    for setting in OWN[family[0]].settings:
        assert checks.difference_from_own_pipeline(*family, setting) <= 1e-4, setting


@pytest.mark.parametrize("guidance_scale", [1, 4])
def test_zero_noise_and_equal_conditions_reproduce_the_latents(family, guidance_scale):
    assert checks.replay_error(family[1], guidance_scale) <= 1e-4


def test_noise_at_the_hook_moves_latents_and_scale_zero_does_not(family):
    assert checks.moved(family[1], 2.0) > 0.05
    assert checks.moved(family[1], 0.0) <= 1e-5


def test_blocks_before_the_hook_run_once_for_each_input_row(family):
    if not isinstance(family[1], TransformerModel):
        pytest.skip("a U-Net's blocks branch behind its middle block")
    guided = 2 if family[1].guidable else 1
    assert checks.rows_per_step(family[1]) == (guided, 2 * guided)


def test_a_sample_is_the_same_alone_and_among_others(family):
    assert checks.difference_alone_and_in_a_batch(family[1]) <= 1e-4


def test_every_family_has_a_pipeline_to_compare_with():
    assert OWN.keys() == PIPELINES.keys()
