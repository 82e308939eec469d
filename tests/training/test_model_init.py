import pytest
import torch
from peft import LoraConfig, TaskType
from transformers import BitsAndBytesConfig

from raft_peft import RegressionAwareConfig, qlora
from raft_peft.training.model_init import reloadable
from raft_peft.training.opening import init_kwargs_of


def arguments(**options):
    return RegressionAwareConfig("out", **{"bf16": False, "report_to": "none", **options})


def test_the_adapter_remembers_the_revision_of_the_model_named():
    args = arguments(model_init_kwargs={"revision": "v1.0"})
    config = reloadable(LoraConfig(r=4), None, args, named=True)
    assert (config.revision, config.task_type, config.r) == ("v1.0", TaskType.CAUSAL_LM, 4)
    assert reloadable(LoraConfig(revision="v2"), None, args, named=True).revision == "v2"
    assert reloadable(None, None, args, named=True) is None


def test_a_complete_configuration_is_used_as_it_is():
    config = LoraConfig(task_type="CAUSAL_LM")
    assert reloadable(config, None, arguments(), named=True) is config


def test_another_task_is_refused():
    with pytest.raises(ValueError, match=r"task_type is .*SEQ_CLS.*CAUSAL_LM"):
        reloadable(LoraConfig(task_type="SEQ_CLS"), None, arguments(), named=True)


@pytest.mark.parametrize(
    ("bf16", "given", "quantization", "expected"),
    [
        (True, None, None, {"attn_implementation": "eager"}),
        (True, {"attn_implementation": None}, None, {"attn_implementation": "eager"}),
        (True, {"attn_implementation": "sdpa"}, None, {"attn_implementation": "sdpa"}),
        (False, {"revision": "v1"}, None, {"revision": "v1"}),
        (False, None, qlora()["quantization_config"], {"dtype": torch.bfloat16}),
        (False, {"dtype": "float32"}, qlora()["quantization_config"], {"dtype": "float32"}),
        (False, None, BitsAndBytesConfig(load_in_8bit=True), {}),
    ],
)
def test_how_a_model_is_loaded_by_default(bf16, given, quantization, expected):
    args = arguments(bf16=bf16, use_cpu=True, model_init_kwargs=given)
    assert init_kwargs_of(args, quantization) == expected
