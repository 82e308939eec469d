import json

import pytest
import torch

from raft_peft.methods import MethodSettings, saved_folder
from raft_peft.methods.saved_folder import (
    RAFT_CONFIG_NAME,
    RaftConfig,
    check_there_is,
    head_and_rest,
)


def test_comes_back_as_it_was(tmp_path):
    texts = ["A", "ü"]
    config = RaftConfig(values=[1.0, 2.0], texts=texts, token_ids=[[5], [6]], token_texts=texts, separator="")
    config.save(tmp_path)
    assert RaftConfig.load(tmp_path / RAFT_CONFIG_NAME) == config
    assert config.grid.texts == ("A", "ü")
    assert set(config.versions) == {"raft-peft", "transformers", "peft", "trl", "torch"}


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{",
        "[]",
        "3",
        "null",
        '{"values": [1, 2]}',
        '{"values": [], "texts": []}',
        '{"values": [1, 2], "texts": ["1"]}',
        '{"values": [1, 1], "texts": ["1", "2"]}',
        '{"values": [1, 2], "texts": ["1", "2"], "unheard_of": 3}',
    ],
)
def test_broken_files_are_named(tmp_path, text):
    path = tmp_path / RAFT_CONFIG_NAME
    path.write_text(text)
    with pytest.raises(ValueError, match=r"raft_config.json is not a usable RAFT configuration.*Save the model again"):
        RaftConfig.load(path)


def test_a_method_of_a_later_version_is_refused(tmp_path):
    path = tmp_path / RAFT_CONFIG_NAME
    path.write_text(json.dumps({"values": [1, 2], "texts": ["1", "2"], "method": "telepathy"}))
    with pytest.raises(ValueError, match=r"method 'telepathy'.*Upgrade"):
        RaftConfig.load(path)


def test_ids_that_mean_other_texts(byte_level, smollm2_tokenizer):
    ids = byte_level.convert_tokens_to_ids(["Ġ1", "Ġ2"])
    config = RaftConfig(values=[1.0, 2.0], texts=["1", "2"], token_ids=[[i] for i in ids], token_texts=[" 1", " 2"])
    config.check_tokens(byte_level)
    with pytest.raises(ValueError, match=r"grid value 1 was trained as the token ids .*' 1'.*reads them as"):
        config.check_tokens(smollm2_tokenizer)


class TestFind:
    def test_in_a_folder(self, tmp_path):
        config = RaftConfig(values=[1.0, 2.0], texts=["1", "2"], method="mbr")
        config.save(tmp_path)
        assert RaftConfig.find(tmp_path, {}) == config
        assert RaftConfig.find(str(tmp_path), {}) == config

    def test_there_is_none(self, tmp_path):
        assert RaftConfig.find(tmp_path, {}) is None

    def test_a_broken_one_is_not_passed_over(self, tmp_path):
        (tmp_path / RAFT_CONFIG_NAME).write_text("{")
        with pytest.raises(ValueError, match="not a usable RAFT configuration"):
            RaftConfig.find(tmp_path, {})

    def test_the_revision_of_a_repository(self, tmp_path, monkeypatch):
        asked = []
        monkeypatch.setattr(saved_folder, "cached_file", lambda *names, **options: asked.append((names, options)))
        assert RaftConfig.find("me/stars", {"revision": "v2"}) is None
        [(names, options)] = asked
        assert names == ("me/stars", RAFT_CONFIG_NAME)
        assert options["revision"] == "v2"


class TestThereIs:
    def test_the_hub_is_asked_once_for_what_it_has_and_again_for_what_it_did_not_give(self, monkeypatch):
        asked, there = [], {"me/stars"}

        def cached_file(name, file, **options):
            asked.append((name, options.get("revision")))
            return file if name in there else None

        monkeypatch.setattr(saved_folder, "cached_file", cached_file)
        for _ in range(2):
            check_there_is("me/stars", {"revision": "v2"})
        assert asked == [("me/stars", "v2")]
        with pytest.raises(FileNotFoundError, match=r"no folder 'me/moon', and the Hub gives no model of this name"):
            check_there_is("me/moon", {})
        there.add("me/moon")
        check_there_is("me/moon", {})


class TestSettingsFor:
    def saved(self, **settings):
        return RaftConfig(values=[1.0, 2.0], texts=["1", "2"], separator="", max_length=9, **settings)

    def test_all_that_the_saved_method_takes(self):
        settings = {"decision": "median", "renormalize": False, "attention": "bidirectional", "number_end": "."}
        config = self.saved(method="raft", **settings)
        expected = {
            "method": "raft",
            "decision": "median",
            "renormalize": False,
            "attention": "bidirectional",
            "number_end": ".",
            "end_every_number": False,
            "distribution_loss": None,
            "distribution_weight": None,
            "label_smoothing": 0.0,
            "separator": "",
            "max_length": 9,
        }
        assert config.settings_for() == expected
        assert config.settings_for("raft") == expected

    def test_what_another_method_takes(self):
        config = self.saved(method="raft", decision="median", renormalize=True, number_end="eos")
        assert config.settings_for("zero_shot") == {
            "method": "zero_shot",
            "constrained": False,
            "number_end": "eos",
            "end_every_number": False,
            "separator": "",
            "max_length": 9,
        }
        assert config.settings_for("pooled").keys() == {"method", "attention", "pooling", "separator", "max_length"}

    @pytest.mark.parametrize("method", [None, "rail"])
    def test_samples_hold_for_the_method_that_drew_them(self, method):
        settings = self.saved(method="rail", num_samples=8, constrained=True).settings_for(method)
        assert (settings["num_samples"], settings["constrained"]) == (8, True)
        MethodSettings(
            **{name: settings[name] for name in settings.keys() - {"separator", "max_length"}}
        ).check_method()

    @pytest.mark.parametrize("method", [None, "rail"])
    def test_a_server_scores_the_grid_where_texts_were_sampled(self, method):
        settings = self.saved(method="rail", num_samples=8, constrained=True).settings_for(method, decodes=False)
        assert settings["method"] == "rail"
        assert not {"num_samples", "constrained"} & settings.keys()

    def test_draws_of_training_are_no_texts_to_sample(self):
        config = self.saved(method="mbr", num_samples=4, decision="median")
        assert config.settings_for()["num_samples"] == 4
        settings = config.settings_for("rail")
        assert "num_samples" not in settings
        assert settings["decision"] == "median"

    def test_decoding_within_the_grid(self):
        config = self.saved(method="ce", constrained=True)
        assert config.settings_for()["constrained"]
        assert config.settings_for("zero_shot")["constrained"]
        assert "constrained" not in config.settings_for("rail")
        assert config.settings_for("rail", num_samples=8)["constrained"]

    def test_a_method_that_does_not_exist_is_left_to_the_check(self):
        assert self.saved().settings_for("telepathy") == {"method": "telepathy", "separator": "", "max_length": 9}


def test_the_head_is_told_from_the_rest():
    one, two = torch.ones(1), torch.zeros(2)
    head, rest = head_and_rest({"model.weight": two, "regression_head.layer.weight": one})
    assert head == {"layer.weight": one}
    assert rest == {"model.weight": two}
