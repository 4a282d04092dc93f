from huggingface_hub import ModelCard

from tests.commands.command_line import call, refused
from tests.tiny_cnn import SOURCE


def test_a_pretrained_model_has_a_card_that_travels_with_it(pretrained, tmp_path):
    card = ModelCard.load(pretrained / "README.md")
    assert [result.metric_type for result in card.data.eval_results] == ["accuracy"] * 3
    pushed = call("model", "push", pretrained, tmp_path / "repository", "--sources", SOURCE)
    assert pushed.exit_code == 0, pushed.output
    pulled = call("model", "pull", tmp_path / "repository", tmp_path / "model", "--sources", SOURCE)
    assert pulled.exit_code == 0, pulled.output
    assert (tmp_path / "model" / "README.md").read_bytes() == (pretrained / "README.md").read_bytes()


def test_a_model_whose_backbone_is_not_allowed_is_not_pulled(pretrained, tmp_path):
    assert SOURCE in refused("model", "pull", pretrained, tmp_path / "model")
    assert not (tmp_path / "model").exists()
    assert "hf://OWNER/NAME" in refused("model", "pull", "nowhere", tmp_path / "model")
