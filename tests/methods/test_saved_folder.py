import json

import pytest

from raft_peft.methods.saved_folder import RAFT_CONFIG_NAME, RaftConfig


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
        '{"values": [1], "texts": ["1"]}',
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
