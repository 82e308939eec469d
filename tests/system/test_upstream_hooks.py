"""The private ground of other libraries that the package stands on, in one list.

After an upgrade these tests name what was renamed there, where an override would otherwise be silently dead. A row
that fails has to be looked at in the file above it. A new one is asked for by `test_the_list_is_complete`.
"""

import ast
import importlib
import inspect
import pkgutil
import re
from functools import partial
from pathlib import Path
from types import MethodType
from typing import NamedTuple

import pytest
from accelerate.hooks import ModelHook, add_hook_to_module
from trl.trainer.utils import add_fused_lm_head

import raft_peft

LIBRARIES = ("accelerate", "bitsandbytes", "peft", "transformers", "trl")


class Row(NamedTuple):
    """A name of theirs, such as `transformers:Trainer.log`, and the file of the package that relies on it.

    `needs` is what calls or reads a name that is overridden, and the parameters that a name is used with.
    """

    file: str
    name: str
    needs: str
    why: str

    def __str__(self):
        return f"{self.name} in {self.file}"


def table(text):
    """Rows of `name | needs | why` below the file that they are of. Where no library is named, it is transformers."""
    file, rows = "", []
    for line in text.strip().splitlines():
        if not line.startswith(" "):
            file = line
            continue
        name, needs, why = (cell.strip() for cell in line.split("|"))
        rows.append(Row(file, name if ":" in name else f"transformers:{name}", needs, why))
    return rows


# What a class of ours replaces in one of theirs, and what calls or reads it there, if not users or PyTorch do.
OVERRIDDEN = table("""
compare/baselines.py
    Trainer._get_eval_sampler | Trainer.get_eval_dataloader | keeps rows in order
compare/run.py
    TrainerCallback.on_step_begin | Trainer._run_epoch | takes the time
    TrainerCallback.on_step_end | Trainer._run_epoch | takes the time
    TrainerCallback.on_evaluate | Trainer.evaluate | keeps what training has cost until then
forward/prefix_cache.py
    DynamicLayer.update | Cache.update | puts the prefix before every prompt
planning/stand_ins.py
    bitsandbytes.nn:Linear4bit.forward | | has no weights to multiply by
    bitsandbytes.nn:Linear8bitLt.forward | | has no weights to multiply by
prediction/pipeline.py
    Pipeline._load_tokenizer | pipeline | the predictor opens it
    Pipeline._load_processor | pipeline | the predictor opens it
    Pipeline._load_image_processor | pipeline | there is none
    Pipeline._load_video_processor | pipeline | there is none
    Pipeline._load_feature_extractor | pipeline | there is none
    Pipeline._sanitize_parameters | Pipeline.__init__ | takes top_k
    Pipeline.get_iterator | Pipeline.__call__ | leaves the batches to the predictor
    Pipeline.preprocess | Pipeline.run_single | leaves the prompt as it is
    Pipeline._forward | Pipeline.forward | reads numbers
    Pipeline.postprocess | Pipeline.run_single | gives numbers and distributions
training/config.py
    trl:SFTConfig.learning_rate | | has another default
    trl:SFTConfig.lr_scheduler_type | | has another default
    trl:SFTConfig.warmup_steps | | has another default
    trl:SFTConfig.truncation_mode | | has another default
    trl:SFTConfig.gradient_checkpointing | | has another default
    trl:SFTConfig.padding_free | | has another default
training/example_counting.py
    Trainer._get_eval_sampler | Trainer.get_eval_dataloader | keeps rows in order
    Trainer.get_eval_dataloader | Trainer.evaluate | leaves no row out
    Trainer.get_test_dataloader | Trainer.predict | leaves no row out
    Trainer._get_train_sampler | Trainer.get_train_dataloader | groups rows by their longest prompts
    Trainer._get_num_items_in_batch | Trainer.get_batch_samples | counts examples in place of tokens
    Trainer.loss_is_scaled_for_ga | Trainer.training_step | the mean over the step is taken already
    Trainer.log | Trainer._maybe_log_save_evaluate | adds what was seen of the batches
training/fault_tolerance/collapse.py
    TrainerCallback.on_train_begin | transformers.trainer_callback:CallbackHandler.on_train_begin | begins anew
    TrainerCallback.on_step_end | transformers.trainer_callback:CallbackHandler.on_step_end | looks for a collapse
    TrainerCallback.on_train_end | transformers.trainer_callback:CallbackHandler.on_train_end | says it again
training/fault_tolerance/trainer.py
    Trainer.train | | goes on from a whole checkpoint
    Trainer._run_epoch | Trainer._inner_training_loop | takes no step beyond the last
    Trainer._get_grad_norm | Trainer._run_epoch | stops before a step into NaN
    Trainer.save_model | Trainer._save_checkpoint | names a full disk, and saves whole what is sharded
    trl:SFTTrainer._save_checkpoint | Trainer._maybe_log_save_evaluate | names a full disk
    Trainer._save_rng_state | Trainer._save_checkpoint | lets all processes finish before the last file is written
training/questions/trainer.py
    trl:SFTTrainer.prediction_step | Trainer.evaluation_loop | gives the questions of each row
training/reasoning/trainer.py
    Trainer.get_train_dataloader | | takes one reasoning of each row
    Trainer._get_num_items_in_batch | Trainer.get_batch_samples | counts the tokens of the step's reasonings
    trl:SFTTrainer.prediction_step | Trainer.evaluation_loop | gives a row of its reasonings
    Trainer.log | Trainer._maybe_log_save_evaluate | adds the loss of the reasonings
    TrainerCallback.on_train_begin | transformers.trainer_callback:CallbackHandler.on_train_begin | counts epochs
    TrainerCallback.on_epoch_begin | Trainer._inner_training_loop | takes other reasonings
training/saving.py
    Trainer._save | Trainer.save_model | saves the head
    Trainer._push_from_checkpoint | Trainer._save_checkpoint | uploads raft_config.json too, and no token
    Trainer._load_from_checkpoint | Trainer.train | loads the head
    Trainer._load_best_model | Trainer._finalize_training | loads the head
    trl:SFTTrainer.create_model_card | trl:SFTTrainer._save_checkpoint | writes a card of its own
    trl:SFTTrainer._tag_names | trl:SFTTrainer.__init__ | tags the model
training/trainer.py
    trl:SFTTrainer._prepare_dataset | trl:SFTTrainer.__init__ | encodes prompts
    Trainer._set_signature_columns_if_needed | Trainer._remove_unused_columns | keeps the encoded columns
    Trainer.train | | refuses to train on nothing
    trl:SFTTrainer.compute_loss | Trainer.training_step | is the loss
    trl:SFTTrainer.prediction_step | Trainer.evaluation_loop | reads numbers in place of logits
    Trainer.evaluation_loop | Trainer.evaluate | remembers what was found
    trl:SFTTrainer.evaluate | Trainer._evaluate | sends a table
    Trainer.predict | | encodes the rows
""")

# What is read, called or set, and the parameters that it is given.
USED = table("""
forward/attention.py
    PreTrainedConfig._attn_implementation | | lets the attention take flat sequences
    AttentionInterface.register | key value | the same
    AttentionMaskInterface.register | key value | the same
    transformers.models.llama.modeling_llama:eager_attention_forward | module query key value | is each architecture's
forward/decoding.py
    PreTrainedModel.generation_config | | is left out of `generate`
forward/layout_choice.py
    PreTrainedConfig._attn_implementation | | tries what the attention can
forward/lm_head.py
    peft.utils:ModulesToSaveWrapper.original_module | | asks for the weight, not for a copy
forward/memory.py
    accelerate.utils.memory:should_reduce_batch_size | exception | knows a full memory
    accelerate.utils:find_executable_batch_size | function starting_batch_size reduce_batch_size_fn | halves a batch
forward/model.py
    bitsandbytes.nn:Linear4bit.support_avx512bf16_for_cpu | | keeps weights unpacked, which pass on gradients
    bitsandbytes.functional:packing_format_for_cpu | | says that weights are packed
    accelerate.hooks:add_hook_to_module._hf_hook | | says where an offloaded module runs
    accelerate.hooks:AlignDevicesHook.execution_device | | the same
forward/one_at_a_time.py
    transformers.models.llama.modeling_llama:LlamaRotaryEmbedding.rope_type | | some kinds keep what they saw
    bitsandbytes.nn:Linear8bitLt | | keeps what it saw
forward/prefix_cache.py
    DynamicLayer.is_initialized | | begins with the prefix's keys and values
    Cache.layers | | takes the prefix from each layer
methods/pretrained.py
    transformers.quantizers:AutoQuantizationConfig.from_dict | quantization_config_dict | quantizes as in training
methods/saved_folder.py
    transformers.utils.hub:cached_files | _raise_exceptions_for_missing_entries | passed on by `cached_file`
    transformers.utils.hub:cached_files | _raise_exceptions_for_connection_errors | the same
planning/stand_ins.py
    bitsandbytes:MatmulLtState.has_fp16_weights | | is what PEFT asks an int8 layer for
    bitsandbytes:MatmulLtState.threshold | | the same
    bitsandbytes.nn:Params4bit.compress_statistics | | is what PEFT asks an NF4 layer for
    bitsandbytes.nn:Params4bit.quant_type | | the same
    transformers.quantizers.base:get_keys_to_not_convert | model | stays dense
    transformers.quantizers.quantizers_utils:should_convert_module | full_name patterns | stays dense
prediction/pipeline.py
    accelerate:dispatch_model.hf_device_map | | leaves a model where it was placed
training/batch_reading.py
    accelerate.utils:extract_model_from_parallel | model keep_torch_compile | finds the model under its wrappers
training/fault_tolerance/checkpoints.py
    transformers.trainer:TRAINER_STATE_NAME | | is the last file written, and so says that a checkpoint is whole
training/config.py
    trl.trainer.utils:get_config_model_id | config | names the base
training/evaluation.py
    transformers.integrations:WandbCallback._wandb | | sends a table
    transformers.integrations:TrackioCallback._trackio | | sends a table
    transformers.integrations:TensorBoardCallback.tb_writer | | sends a table
training/example_counting.py
    Trainer.is_distributed_loading_by_transformers | | keeps processes at batches of one size
training/fault_tolerance/trainer.py
    trl:SFTTrainer._tokenizer | | shows prompts
    Trainer._get_learning_rate | | is in the message of a step into NaN
    Trainer._get_output_dir | trial | finds the checkpoints
    transformers.trainer:TRAINER_STATE_NAME | | is removed before a folder is written again
    accelerate.state:AcceleratorState.fsdp_plugin | | saves shards whole
    accelerate.utils:FullyShardedDataParallelPlugin.set_state_dict_type | state_dict_type | the same
    accelerate:Accelerator.scaler | | leaves the overflows of fp16 to the scaler
training/model_init.py
    trl.models:enable_selective_activation_checkpointing | model | checkpoints the model under the adapter
    accelerate:Accelerator.ddp_handler | | tells DDP of parameters that have no part in the loss
training/number_tokens.py
    peft.utils:TrainableTokensWrapper.token_adapter | | finds the rows that an adapter holds
    peft.tuners.trainable_tokens.layer:TrainableTokensLayer.token_indices | | the same
    peft.utils:ModulesToSaveWrapper | | holds all rows
    peft:PeftModel.save_pretrained | save_embedding_layers | saves these rows alone
training/questions/trainer.py
    trl:SFTTrainer._tokenizer | | is without the processor around it
    trl:SFTTrainer.aux_loss_enabled | | asks a mixture of experts for its loss
training/reasoning/trainer.py
    trl:SFTTrainer._tokenizer | | writes texts for a table
training/saving.py
    trl:SFTTrainer._tokenizer | | is without the processor around it
    trl.trainer.utils:get_config_model_id | config | names the base
training/trainer.py
    trl:SFTTrainer._tokenizer | | is without the processor around it
    trl:SFTTrainer.aux_loss_enabled | | asks a mixture of experts for its loss
    trl:SFTTrainer.router_aux_loss_coef | | weighs that loss
    Trainer._signature_columns | | keeps the encoded columns
    Trainer._prepare_inputs | inputs | moves a batch to the device
    Trainer.compute_loss_context_manager | | reads under autocast
    Trainer.current_gradient_accumulation_steps | | shares the experts' loss over the step
""")

# What is looked for as text: the words of a message, and names that are passed on or asked for in quotes.
WORDS = [
    ("transformers.models.auto.auto_factory", "Unrecognized configuration class", "prediction/opening.py"),
    ("transformers.trainer", "accepts_loss_kwargs", "compare/sequence_classification.py"),
    ("transformers.pipelines", "_from_pipeline", "prediction/pipeline.py"),
    ("transformers.pipelines", "code_revision", "prediction/pipeline.py"),
    ("peft.tuners.lora.model", "is_loaded_in_4bit", "planning/stand_ins.py"),
    ("peft.tuners.lora.model", "is_loaded_in_8bit", "planning/stand_ins.py"),
]

# Where it matters which comes first: a gradient is looked at before the step, and the file that says that a checkpoint
# is whole is written when the rest of it is.
IN_ORDER = [
    ("transformers:Trainer._run_epoch", "self._get_grad_norm(", "self.optimizer.step("),
    ("transformers:Trainer._save_checkpoint", "self._save_rng_state(", "TRAINER_STATE_NAME"),
]

# Private names of others: PyTorch's modules and tensors without contents, and argparse's options.
OF_OTHERS = {
    "_actions",
    "_apply",
    "_argument_group_name",
    "_buffers",
    "_exit",
    "_modules",
    "_parameters",
    "torch._subclasses.fake_tensor",
    "torch.utils._python_dispatch",
    "torch.utils._pytree",
}
# What the package itself gives to objects of the libraries.
OURS = {"_added_loss", "_compute_metrics", "_note_batch", "_own_forward", "_raft_config"}

PACKAGE = Path(raft_peft.__file__).parent


def split(name):
    """The object that has it, and its name there."""
    module, _, path = name.partition(":")
    *owner, last = path.split(".")
    return pkgutil.resolve_name(f"{module}:{'.'.join(owner)}" if owner else module), last


def is_there(owner, name):
    """Whether an object has an attribute, or its source, or that of a class above it, gives it one."""
    classes = [one for one in getattr(owner, "__mro__", ()) if one.__module__ != "builtins"]
    return hasattr(owner, name) or any(
        re.search(rf"\.{name}(: [^=\n]+)? = ", inspect.getsource(one)) for one in classes or [owner]
    )


@pytest.mark.parametrize("row", OVERRIDDEN, ids=str)
def test_what_is_overridden_is_there_and_called(row):
    owner, name = split(row.name)
    assert hasattr(owner, name), f"{row.name} is gone: {row.file} overrides nothing. It {row.why}."
    if row.needs:
        caller = pkgutil.resolve_name(row.needs if ":" in row.needs else f"transformers:{row.needs}")
        assert re.search(rf"\b{name}\b", inspect.getsource(caller)), f"{row.needs} does not use {name} anymore."


@pytest.mark.parametrize("row", USED, ids=str)
def test_what_is_used_is_there_with_its_parameters(row):
    owner, name = split(row.name)
    assert is_there(owner, name), f"{row.name} is gone, on which {row.file} relies. It {row.why}."
    if row.needs:
        missing = set(row.needs.split()) - inspect.signature(getattr(owner, name)).parameters.keys()
        assert not missing, f"{row.name} does not take {missing} anymore."


@pytest.mark.parametrize(("module", "words", "file"), WORDS, ids=[words for _, words, _ in WORDS])
def test_words_are_those_of_the_library(module, words, file):
    assert words in inspect.getsource(importlib.import_module(module))
    assert words in (PACKAGE / file).read_text()


@pytest.mark.parametrize(("name", "first", "then"), IN_ORDER, ids=[name for name, _, _ in IN_ORDER])
def test_order(name, first, then):
    source = inspect.getsource(pkgutil.resolve_name(name))
    assert 0 <= source.find(first) < source.find(then)


def test_the_forward_that_a_model_is_given_is_one_that_a_view_can_be_made_of(tiny_llama):
    before = tiny_llama.forward
    add_fused_lm_head(tiny_llama)
    assert isinstance(tiny_llama.forward, MethodType)
    assert before in [cell.cell_contents for cell in tiny_llama.forward.__func__.__closure__]

    del tiny_llama.forward
    add_hook_to_module(tiny_llama, ModelHook())
    assert isinstance(tiny_llama.forward, partial)
    assert tiny_llama.forward.args == (tiny_llama,)


def modules():
    for found in pkgutil.walk_packages(raft_peft.__path__, "raft_peft."):
        if not found.name.endswith("__main__"):
            yield importlib.import_module(found.name)


def classes_on_theirs():
    """Classes of the package with a base of the libraries, their file, and these bases."""
    for module in modules():
        for one in vars(module).values():
            if inspect.isclass(one) and one.__module__ == module.__name__:
                bases = [base for base in one.__mro__ if base.__module__.split(".")[0] in LIBRARIES]
                if bases:
                    yield one, file_of(module), bases


def file_of(module):
    return str(Path(module.__file__).relative_to(PACKAGE))


def overrides():
    for one, file, bases in classes_on_theirs():
        for name in vars(one):
            if not name.startswith(("__", "_abc_")) and any(name in vars(base) for base in bases):
                yield file, name


def test_our_overrides_take_what_theirs_are_given():
    """By position and by name, unless they take anything."""
    for one, _, bases in classes_on_theirs():
        for name, ours in vars(one).items():
            theirs = next((vars(base)[name] for base in bases if inspect.isfunction(vars(base).get(name))), None)
            if theirs is None or not inspect.isfunction(ours) or name.startswith("__"):
                continue
            # PyTorch calls it by position.
            if name == "forward":
                continue
            ours, theirs = inspect.signature(ours).parameters, inspect.signature(theirs).parameters
            if any(parameter.kind == parameter.VAR_POSITIONAL for parameter in ours.values()):
                continue
            named = [key for key, parameter in theirs.items() if parameter.kind != parameter.VAR_KEYWORD]
            takes_any = any(parameter.kind == parameter.VAR_KEYWORD for parameter in ours.values())
            for mine, other in zip([key for key in ours if key in theirs], named, strict=False):
                assert mine == other, f"{one.__name__}.{name}: {list(ours)} are not {list(theirs)}"
            assert takes_any or set(named) <= ours.keys(), f"{one.__name__}.{name} lacks {set(named) - ours.keys()}"


def private(name):
    return name.startswith("_") and not name.startswith("__") and name != "_"


def own_names(trees):
    """Private names that the package defines: functions, classes, and attributes of its own objects."""
    own = set()
    for node in (node for tree in trees.values() for node in ast.walk(tree)):
        match node:
            case (
                ast.FunctionDef(name=name)
                | ast.AsyncFunctionDef(name=name)
                | ast.ClassDef(name=name)
                | ast.Name(id=name, ctx=ast.Store())
            ):
                own.add(name)
            case ast.Attribute(value=ast.Name(id="self"), attr=name, ctx=ast.Store()):
                own.add(name)
    return own


def foreign_names(file, tree, own):
    """Private names in a file that are not the package's own, as far as that can be told from the source."""
    for node in ast.walk(tree):
        match node:
            case ast.Attribute(value=ast.Call(func=ast.Name(id="super")), attr=name) if private(name):
                yield file, name
            case ast.Attribute(attr=name) | ast.keyword(arg=str(name)) if private(name) and name not in own:
                yield file, name
            case ast.ImportFrom(module=str(module), names=names) if not module.startswith("raft_peft"):
                if any(private(part) for part in module.split(".")):
                    yield from ((file, f"{module}:{alias.name}") for alias in names)
                yield from ((file, alias.name) for alias in names if private(alias.name))


def names_that_both_have():
    """What a class of ours sets or defines as private, and a base of it in the libraries uses."""
    for one, file, bases in classes_on_theirs():
        source = "".join(inspect.getsource(base) for base in bases)
        for name in set(re.findall(r"self\.(_[a-z]\w*)", inspect.getsource(one))):
            if re.search(rf"self\.{name}\b", source):
                yield file, name


def last_part(name):
    return re.split(r"[.:]", name)[-1]


def listed(file, name):
    rows = [row for row in (*OVERRIDDEN, *USED) if row.file == file]
    return any(name in (row.name, last_part(row.name), *row.needs.split()) for row in rows)


def test_the_list_is_complete():
    trees = {
        str(path.relative_to(PACKAGE)): ast.parse(path.read_text(encoding="utf-8")) for path in PACKAGE.rglob("*.py")
    }
    own = own_names(trees) - {last_part(row.name) for row in OVERRIDDEN}
    found = {*overrides(), *names_that_both_have()}
    for file, tree in trees.items():
        found |= set(foreign_names(file, tree, own))
    missing = {
        (file, name)
        for file, name in found
        if name.rpartition(":")[0] not in OF_OTHERS and name not in OF_OTHERS | OURS and not listed(file, name)
    }
    assert not missing, "Add these to OVERRIDDEN or USED, or do without them."


def test_every_row_is_of_a_file_that_uses_it():
    for row in (*OVERRIDDEN, *USED):
        words = [last_part(row.name), *(row.needs.split() if row in USED else ())]
        source = (PACKAGE / row.file).read_text(encoding="utf-8")
        assert any(re.search(rf"\b{word}\b", source) for word in words), f"{row.file} does without {row.name} by now."
