"""What the command line says of mistakes: the option or the row, the reason and the cure, and no traceback."""

import json
import os
import re
from importlib.metadata import version

import pytest
import torch

from raft_peft.cli.command import main

ROW = '{"prompt": "the score is", "label": 1}\n'
CHAT = '[{"role": "user", "content": "a"}]'


@pytest.fixture
def model(tiny_llama, tokenizer, tmp_path):
    tiny_llama.save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    return str(tmp_path / "model")


@pytest.fixture
def train(model, tmp_path, capsys):
    """A function that trains for a step on rows given as text, and returns the exit code and what was said."""

    def run(content, *options, grid="0..4", max_steps="1"):
        path = tmp_path / "train.jsonl"
        path.write_text(content)
        arguments = ["train", "--model_name_or_path", model, "--train_file", str(path), "--output_dir"]
        arguments += [str(tmp_path / "out"), "--use_cpu", "true", "--bf16", "false", "--disable_tqdm", "true"]
        arguments += ["--gradient_checkpointing", "false", *options]
        arguments += ["--grid", grid] if grid else []
        arguments += ["--max_steps", max_steps] if max_steps else []
        try:
            code = main(arguments)
        except SystemExit as stopped:
            code = stopped.code
        said = capsys.readouterr().err
        assert "Traceback" not in said
        return code, said

    return run


class TestRows:
    @pytest.mark.parametrize(
        ("content", "message"),
        [
            (
                f'{ROW}{ROW}{{"prompt": {CHAT}, "label": 2}}\n',
                r"row 2 has the prompt \[\{.*such as 'the score is'.*Write all prompts as texts, or all as chats",
            ),
            (f'{ROW}{{"prompt": "b", "label": "ten"}}\n', "row 1 has the label 'ten'"),
            (
                '{"prompt": "a", "label": 1, "tools": [{"a": 1}]}\n{"prompt": "b", "label": 1, "tools": [{"a": "x"}]}',
                r"row 1 has the tools .*does not fit those of the rows before it, such as \[\{'a': 1\}\]",
            ),
            (f'{{"prompt": "a", "label": 1{"0" * 30}}}\n', "row 0 has the label 10*, which no column"),
            ('{"prompt": "a", "stars": 1}\n', r"\['prompt', 'stars'\], and no label in 'label'.*--label_column"),
            ('{"text": "a", "label": 1}\n', r"\['text', 'label'\], and no `prompt`.*--prompt_template"),
        ],
        ids=["texts and chats", "numbers and words", "kinds within", "too large", "no label", "no prompt"],
    )
    def test_that_cannot_be_trained_on(self, content, message, train):
        code, said = train(content)
        assert code == 1
        assert re.search(message, said)

    def test_that_do_not_fit_the_template(self, model, tmp_path, capsys):
        (tmp_path / "rows.jsonl").write_text('{"text": "a"}\n')
        template = ["--prompt-template", "{text:d} stars"]
        assert main(["predict", str(tmp_path / "rows.jsonl"), "--model", model, "--grid", "0..4", *template]) == 1
        assert "'{text:d} stars' cannot be filled with {'text': 'a'}: Unknown format code" in capsys.readouterr().err


class TestOptions:
    @pytest.mark.parametrize(
        ("options", "message"),
        [
            (["--max_stesp", "3"], r"no option --max_stesp \(is --max_steps meant\?\)"),
            (["--config", "none.yaml"], "no file 'none.yaml', which --config names"),
            (["--model_init_kwargs", '{"foo": 1}'], "--model_init_kwargs holds 'foo', which does not exist"),
            (["--lr_scheduler_kwargs", '{"foo": 1}'], "--lr_scheduler_kwargs holds 'foo', which does not exist"),
        ],
    )
    def test_that_do_not_exist(self, options, message, train):
        code, said = train(ROW, *options)
        assert code == 1
        assert re.search(message, said)

    def test_that_must_be_an_object(self, train):
        code, said = train(ROW, "--gradient_checkpointing_kwargs", "foo")
        assert code == 2
        assert "'foo' is no JSON object" in said

    def test_a_metric_that_does_not_exist(self, train, tmp_path):
        (tmp_path / "dev.jsonl").write_text(ROW * 2)
        options = ["--eval_file", str(tmp_path / "dev.jsonl"), "--eval_strategy", "steps", "--eval_steps", "1"]
        options += ["--save_steps", "1", "--load_best_model_at_end", "true", "--metric_for_best_model", "foo"]
        code, said = train(ROW, *options)
        assert code == 1
        assert "'eval_foo', which is not found in the evaluation metrics" in said

    def test_of_compare(self, tmp_path, capsys):
        assert main(["compare", "--model", "m", "--output_dir", str(tmp_path), "--sedes", "3"]) == 1
        assert "no option --sedes (is --seeds meant?)" in capsys.readouterr().err

    @pytest.mark.parametrize(
        ("words", "message"),
        [
            (["compare", "--gird", "1,2"], "There is no option --gird (is --grid meant?)."),
            (["predict", "rows.jsonl", "--modle", "m"], "There is no option --modle (is --model meant?)."),
            (
                ["predict", "rows.jsonl", "--model", "m", "--max-len", "5"],
                "There is no option --max-len (is --max-length meant?).",
            ),
            (["push", "plain", "nonsense", "name"], "Too many arguments: name. raft-peft push --help shows"),
        ],
    )
    def test_names_that_do_not_exist(self, words, message, capsys):
        assert main(words) == 1
        assert message in capsys.readouterr().err

    def test_an_abbreviation_is_no_option(self, train):
        code, said = train(ROW, "--distribution_los", "soft_ce")
        assert code == 1
        assert "no option --distribution_los (is --distribution_loss meant?)" in said
        code, said = train(ROW, "--gird", "0..4", grid=None)
        assert code == 1
        assert "no option --gird (is --grid meant?)" in said

    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            (["evaluate", "--output", "none/metrics.json"], "no folder 'none' to write metrics.json to"),
            (["evaluate", "--picture", "none/picture.png"], "no folder 'none' to write picture.png to"),
            (["evaluate", "--picture", "picture.foo"], "'picture.foo' cannot be drawn. End its name in one of .*png"),
            (["predict", "--model", "no/such-model"], "no folder 'no/such-model', and the Hub gives no model"),
            (["predict", "--model", "modle"], "no folder 'modle', .*Is 'model' meant?"),
            (["predict", "--model", "./modle"], "no folder './modle'. Is 'model' meant?"),
            (["calibrate", "--model", "modle"], "no folder 'modle' to save the calibration in. Is 'model' meant?"),
            (["predict", "out.jsonl", "--interval", "0.9"], "'model' is not calibrated. Run: raft-peft calibrate"),
            (
                ["predict", "out.jsonl", "--calibrated"],
                "'model' is not calibrated. .* --model model --label-map affine",
            ),
            (["calibrate", "--group-column", "topic"], "and no 'topic'. Pass .* as `--group-column`"),
            (["predict", "out.jsonl", "--prompt_template", "{txt}"], "the column 'txt', and the row has the columns"),
            (
                ["predict", "out.jsonl", "--system", "Be fair.", "--prompt_template", "{prompt} {txt}"],
                "the column 'txt', and the row has the columns",
            ),
            (["predict", "out.txt"], "'out.txt' ends in '.txt'"),
            (["predict", "none/out.jsonl"], "no folder 'none' to write out.jsonl to"),
            (["predict", "out.jsonl", "--decision", "best"], "no decision rule 'best'"),
            (["predict", "--method", "rail", "--constrained"], "Set `--num-samples`, or leave `--constrained` off"),
            (["predict", "--end-every-number"], "set `--number-end` to 'eos'"),
            (["predict", "--method", "raft", "--pooling", "max"], "`--pooling max` does nothing with method 'raft'"),
            (["evaluate", "--label-column", "stars"], "no label in 'stars'. Pass .* as `--label-column`"),
        ],
    )
    def test_seen_before_a_model_is_loaded(self, arguments, message, model, tmp_path, capsys, monkeypatch):
        def load(*_, **__):
            raise AssertionError

        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
        monkeypatch.setattr("raft_peft.prediction.opening.open_model", load)
        monkeypatch.chdir(tmp_path)
        (tmp_path / "rows.jsonl").write_text(ROW)
        command, *options = arguments
        options = options if "--model" in options else [*options, "--model", "model"]
        assert main([command, "rows.jsonl", "--grid", "0..4", *options]) == 1
        said = capsys.readouterr()
        assert re.search(message, said.err)
        assert not said.out
        assert {path.name for path in tmp_path.iterdir()} == {"rows.jsonl", "model"}

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            (["--batch-size", "0"], "argument --batch-size: '0' is not a whole number from 1"),
            (["--interval", "90"], "argument --interval: '90' is not a number between 0 and 1"),
        ],
    )
    def test_out_of_range(self, options, message, capsys):
        with pytest.raises(SystemExit):
            main(["predict", "rows.jsonl", "--model", "model", *options])
        assert message in capsys.readouterr().err

    def test_a_model_to_train_that_is_not_there(self, train, monkeypatch):
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
        code, said = train(ROW, "--model-name-or-path", "no-model")
        assert code == 1
        assert "no folder 'no-model'" in said

    def test_advice_names_options(self, train):
        code, said = train(ROW, "--packing")
        assert code == 1
        assert "`--packing true` cannot be used" in said
        assert "`--padding_free true` lays the rows" in said

    def test_a_dtype_that_does_not_exist(self, model, capsys):
        with pytest.raises(SystemExit):
            main(["predict", "rows.jsonl", "--model", model, "--grid", "0..4", "--dtype", "foo"])
        assert "invalid choice: 'foo'" in capsys.readouterr().err


class TestYaml:
    @pytest.mark.parametrize(
        ("content", "message"),
        [
            ("max_steps: [", "(?s)is not YAML: .*line 1"),
            ("- max_steps", "must hold options by their names"),
            ("max_stesp: 1", r"--max_stesp \(is --max_steps meant\?\), which .*yaml names"),
            ("max_steps: [1]", r"gives max_steps as \[1\], and it takes one value"),
            ("max_steps: 1\nmax_steps: 2", "'max_steps' stands there twice"),
            ("env: 3", "must hold options by their names"),
        ],
    )
    def test_that_cannot_be_read_as_options(self, content, message, train, tmp_path):
        (tmp_path / "options.yaml").write_text(content)
        code, said = train(ROW, "--config", str(tmp_path / "options.yaml"))
        assert code == 1
        assert re.search(message, said)

    @pytest.mark.parametrize("content", ["max_steps: abc", "max_steps: 1.5", "max_steps: no", "use_peft: maybe"])
    def test_values_of_another_kind(self, content, train, tmp_path):
        (tmp_path / "options.yaml").write_text(content)
        code, said = train(ROW, "--config", str(tmp_path / "options.yaml"), max_steps=None)
        assert code == 2
        assert f"argument --{content.partition(':')[0]}" in said

    def test_words_and_truth_values(self, train, tmp_path, monkeypatch):
        monkeypatch.setenv("RAFT_PEFT_TEST", "before")
        (tmp_path / "options.yaml").write_text(
            "grid: {0: no, 1: yes}\nsave_strategy: no\neval_strategy: no\nuse_peft: off\nmax-steps: 1\nseed: 7\n"
            "learning_rate: 1e-3\nload_best_model_at_end: no\nlogging_first_step: on\nenv: {RAFT_PEFT_TEST: on}\n"
        )
        assert train(ROW, f"--config={tmp_path / 'options.yaml'}", grid=None, max_steps=None)[0] == 0
        saved = json.loads((tmp_path / "out" / "raft_config.json").read_text())
        assert (saved["values"], saved["texts"]) == ([0, 1], ["no", "yes"])
        assert not (tmp_path / "out" / "adapter_config.json").exists()
        assert os.environ["RAFT_PEFT_TEST"] == "on"
        args = torch.load(tmp_path / "out" / "training_args.bin", weights_only=False)
        assert (args.max_steps, args.learning_rate, args.seed) == (1, 1e-3, 7)
        assert (args.save_strategy, args.eval_strategy, args.logging_first_step) == ("no", "no", True)


class OutOfMemoryError(RuntimeError):
    """As torch's, which is known by its name."""


@pytest.mark.parametrize(
    ("error", "code", "said", "has_traceback"),
    [
        (RuntimeError("ouch"), 1, "RuntimeError: ouch", True),
        (KeyError("label"), 1, "an internal error, KeyError", True),
        (OutOfMemoryError("20 GiB"), 1, "not enough memory: 20 GiB\nUse smaller batches", False),
        (KeyboardInterrupt(), 130, "raft-peft plan: interrupted.", False),
        (NotADirectoryError(), 1, "raft-peft plan: NotADirectoryError", False),
    ],
)
def test_errors_that_are_not_of_the_input(error, code, said, has_traceback, monkeypatch, capsys):
    def run(parser, words):
        raise error

    monkeypatch.setattr("raft_peft.cli.plan.run", run)
    assert main(["plan", "--model", "two words"]) == code
    err = capsys.readouterr().err
    assert said in err
    assert ("Traceback" in err) is has_traceback
    if has_traceback:
        report = err[err.index("an internal error") :]
        assert "Please open an issue" in report
        assert "command: raft-peft plan --model 'two words'" in report
        assert f"raft-peft {version('raft-peft')}" in report
        assert f"torch {version('torch')}" in report
