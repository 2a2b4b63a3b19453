from dreamda_aug.report.rendering import content_hash


def test_the_policy_calls_a_script_by_its_digest():
    # of the empty text, as `printf '' | openssl sha256 -binary | base64` says
    assert content_hash("") == "sha256-47DEQpj8HBSa+/TImW+5JCeuQeRkm5NMpJWZG3hSuFU="
