"""Proves that `nvfp4 eval` asks and scores as lm-evaluation-harness does.

1. A tiny random Nemotron-H checkpoint and a byte-level BPE tokenizer are made in --work.
2. The first items of each task under --data are copied there, in the fields that the harness's
   own task definitions expect.
3. `nvfp4 eval` runs on them, and so does the harness: its task definitions (with the data set
   replaced by the local files) make the prompts, its HFLM scores them with transformers on the CPU.
4. Every log-likelihood must agree to 1e-3, every accuracy, perplexity and generated text exactly
   as far as the measure allows; bits per byte of a text of several windows to 1e-4.
5. What is written, and how answers are found in it: `generations.py`.

Packages: torch, transformers >= 5, lm_eval[math] == 0.4.13 (with its `datasets`), tokenizers.

    python lm_eval_parity.py --nvfp4 target/release/nvfp4 --tool target/release/examples/interop \
        --data DIR --work DIR

Prints one line per check and the ratio of times; exits with 1 if a check fails.
"""

import argparse
import json
import math
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import generations

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("HF_DATASETS_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "true")

TOLERANCE = 1e-3
BITS_TOLERANCE = 1e-4
END = "<|endoftext|>"
WINDOW = 2048
# The harness keeps room in the window for all that a task may write, 2048 tokens for one.
LONG_WINDOW = 16384
LAYERS = "linear_attention mlp linear_attention full_attention mlp linear_attention".split()

SUBJECTS = {
    "mmlu": ["anatomy", "high_school_computer_science"],
    "blimp": ["npi_present_1", "wh_island"],
}


def read(path, limit=None):
    with open(path, encoding="utf-8") as lines:
        items = [json.loads(line) for line in lines if line.strip()]
    return items[:limit]


def write(path, items):
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "w", encoding="utf-8") as out:
        for item in items:
            out.write(json.dumps(item) + "\n")


# What the harness's definitions read: fields of the published data sets.


def raw_arc(item):
    labels = [chr(ord("A") + index) for index in range(len(item["choices"]))]
    return {
        "id": item["id"],
        "question": item["question"],
        "choices": {"text": item["choices"], "label": labels},
        "answerKey": labels[item["gold"]],
    }


def raw_hellaswag(item):
    label, context = item["query"].split(": ", 1)
    return {
        "ind": item["ind"],
        "activity_label": label,
        "ctx_a": context,
        "ctx_b": "",
        "endings": item["choices"],
        "label": str(item["gold"]),
    }


def raw_lambada(item):
    return {**item, "text": item["context"] + " " + item["continuation"]}


def raw_mmlu_pro_example(item):
    options = [line.split(". ", 1)[1] for line in item["options"].split("\n")]
    solution = "A: Let's think step by step. " + item["solution"]
    return {**item, "options": options, "cot_content": solution}


def as_it_is(item):
    return item


def copy_data(source, target, count):
    """Step 2."""

    def take(name, convert=as_it_is, limit=count):
        write(target / name, [convert(item) for item in read(source / name, limit)])

    take("lambada/lambada_openai_test.jsonl", raw_lambada)
    take("piqa/valid.jsonl")
    take("hellaswag/val.jsonl", raw_hellaswag)
    take("winogrande/val.jsonl")
    for name in ("arc_easy", "arc_challenge"):
        take(f"arc/{name}_test.jsonl", raw_arc)
        take(f"arc/{name}_train.jsonl", raw_arc, limit=None)
    for subject in SUBJECTS["blimp"]:
        take(f"blimp/{subject}.jsonl", limit=count // 2)
    questions = read(source / "mmlu/test.jsonl")
    for part, limit in (("test", count // 2), ("dev", None)):
        items = []
        for subject in SUBJECTS["mmlu"]:
            of_subject = [i for i in read(source / f"mmlu/{part}.jsonl") if i["subject"] == subject]
            items += of_subject[:limit]
            # The harness has one data set per subject.
            write(target / f"mmlu/{subject}/{part}.jsonl", of_subject[:limit])
        write(target / f"mmlu/{part}.jsonl", items)
    take("gsm8k/test.jsonl", limit=4)
    take("gsm8k/train.jsonl", limit=None)
    return questions


def make_checkpoint(folder, corpus, width):
    """Step 1."""
    import torch
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import NemotronHConfig, NemotronHForCausalLM, PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=1024,
        special_tokens=[END],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(corpus, trainer)
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token=END, eos_token=END)
    fast.pad_token = END
    end = fast.convert_tokens_to_ids(END)

    torch.manual_seed(1234)
    config = NemotronHConfig(
        vocab_size=1024,
        hidden_size=width,
        layers_block_type=LAYERS,
        intermediate_size=2 * width,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=width // 4,
        mamba_num_heads=4,
        mamba_head_dim=width // 2,
        ssm_state_size=16,
        n_groups=2,
        chunk_size=64,
        max_position_embeddings=WINDOW,
        # Below every step that occurs: transformers clamps at it, the published models do not.
        time_step_min=1e-6,
        time_step_limit=(0.0, float("inf")),
        bos_token_id=end,
        eos_token_id=end,
        pad_token_id=end,
    )
    model = NemotronHForCausalLM(config).eval().float()
    with torch.no_grad():
        for name, weight in model.named_parameters():
            # Logits that differ, so that no choice is a matter of rounding.
            if "lm_head" in name or "embed" in name:
                weight.mul_(20.0)
            elif weight.dim() == 2:
                weight.mul_(3.0)
    model.save_pretrained(folder)
    fast.save_pretrained(folder)
    return model, fast


def with_window(checkpoint, folder, window):
    """The same checkpoint for longer texts; nothing in the model depends on the window."""
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(checkpoint, folder)
    path = folder / "config.json"
    config = json.loads(path.read_text(encoding="utf-8"))
    config["max_position_embeddings"] = window
    path.write_text(json.dumps(config), encoding="utf-8")
    return folder


def run_nvfp4(binary, model, data, out, arguments):
    """The lines of results by task, and the seconds of the whole process."""
    command = [str(binary), "eval", "--model", str(model), "--data", str(data), "--out", str(out)]
    start = time.perf_counter()
    subprocess.run(command + ["--force"] + arguments, check=True, stdout=subprocess.DEVNULL)
    seconds = time.perf_counter() - start
    tasks = {}
    for line in read(out):
        if line["line"] != "run":
            tasks.setdefault(line["task"], []).append(line)
    return tasks, seconds


def harness_task(definition, splits, folder, shots, name=None):
    """A task of the harness with local files in place of its data set."""
    import lm_eval.tasks
    from lm_eval.api.task import ConfigurableTask
    from lm_eval.tasks._yaml_loader import load_yaml

    root = Path(lm_eval.tasks.__file__).parent
    config = dict(load_yaml(root / definition))
    for key in ("include", "tag", "group", "task_alias", "group_alias"):
        config.pop(key, None)
    config["dataset_path"] = "json"
    config["dataset_name"] = None
    config["dataset_kwargs"] = {
        "data_files": {split: str(folder / file) for split, file in splits.items()}
    }
    for split in ("training_split", "validation_split", "test_split"):
        if config.get(split) not in splits:
            config[split] = None
    config["num_fewshot"] = shots
    if name:
        config["task"] = name
    task = ConfigurableTask(config=config)
    task.set_fewshot_seed(1234)
    task.build_all_requests(rank=0, world_size=1)
    return task


def score(lm, task):
    """Results per document: what the model answered, and the harness's measures; seconds."""
    start = time.perf_counter()
    request_type = task.instances[0].request_type
    responses = getattr(lm, request_type)(task.instances, disable_tqdm=True)
    seconds = time.perf_counter() - start
    documents = {}
    for instance, response in zip(task.instances, responses, strict=True):
        documents.setdefault(instance.doc_id, []).append((instance, response))
    results = []
    for doc_id in sorted(documents):
        pairs = sorted(documents[doc_id], key=lambda pair: pair[0].idx)
        answers = [response for _, response in pairs]
        if task.OUTPUT_TYPE == "generate_until":
            results.append((answers, {}))
        else:
            results.append((answers, task.process_results(pairs[0][0].doc, answers)))
    return results, seconds


class Report:
    def __init__(self):
        self.failed = 0

    def line(self, passed, text):
        self.failed += not passed
        print(("ok     " if passed else "FAILED ") + text, flush=True)


def of_line(line):
    """Log-likelihoods of one line of results."""
    if "choice" in line:
        return line["choice"]["log_likelihoods"]
    return [line["completion"]["log_likelihood"]]


def check_scores(report, name, lines, results, measures):
    lines = [line for line in lines if line["line"] == "item"]
    if len(lines) != len(results):
        report.line(False, f"{name}: {len(lines)} items, the harness has {len(results)}")
        return
    worst, differing = 0.0, {measure: 0 for measure in measures}
    for line, (answers, found) in zip(lines, results, strict=True):
        ours, theirs = of_line(line), [likelihood for likelihood, _ in answers]
        assert len(ours) == len(theirs), (name, line["id"])
        worst = max([worst] + [abs(a - b) for a, b in zip(ours, theirs, strict=True)])
        for measure in measures:
            differing[measure] += line["correct"][measure] != bool(found[measure])
    passed = worst <= TOLERANCE and not any(differing.values())
    shown = ", ".join(
        f"{measure} {sum(line['correct'][measure] for line in lines) / len(lines):.4f}"
        f" ({differing[measure]} items differ)"
        for measure in measures
    )
    report.line(passed, f"{name}: {len(lines)} items, worst log-likelihood {worst:.1e}; {shown}")


def check_text(report, lm, lines, text):
    from lm_eval.api.instance import Instance

    request = Instance(
        request_type="loglikelihood_rolling", doc={}, arguments=(text,), idx=0
    )
    [theirs] = lm.loglikelihood_rolling([request], disable_tqdm=True)
    size = len(text.encode())
    bits = -theirs / size / math.log(2)
    [item, summary] = lines
    ours = summary["figures"]["bits_per_byte"]["value"]
    windows = math.ceil(item["text"]["tokens"] / WINDOW)
    report.line(
        abs(ours - bits) <= BITS_TOLERANCE,
        f"text of {size} bytes in {windows} windows: {ours:.5f} bits per byte, "
        f"off by {abs(ours - bits):.1e}",
    )


def check_generation(report, name, lines, task, results):
    lines = [line for line in lines if line["line"] == "item"]
    texts = [line["generation"]["text"] for line in lines]
    equal = sum(ours == answers[0] for ours, (answers, _) in zip(texts, results, strict=True))
    report.line(equal == len(texts), f"{name}: {equal} of {len(texts)} generated texts are equal")
    for instance in task.instances:
        instance.resps = [results[instance.doc_id][0][0]]
    task.apply_filters()
    names = {"strict-match": "exact_match", "flexible-extract": "flexible_extract"}
    for their_name, our_name in names.items():
        same = 0
        for instance, line in zip(task.instances, lines, strict=True):
            answer = instance.filtered_resps[their_name]
            right = task.process_results(instance.doc, [answer])["exact_match"]
            ours = line["generation"]["answers"][our_name]
            same += ours == answer and line["correct"][our_name] == bool(right)
        report.line(same == len(lines), f"{name}: {same} of {len(lines)} answers by {their_name}")


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--nvfp4", type=Path, required=True, help="the command")
    parser.add_argument("--tool", type=Path, required=True, help="the example `interop`")
    parser.add_argument("--data", type=Path, required=True, help="folder of the tasks' files")
    parser.add_argument("--work", type=Path, required=True, help="folder to work in")
    parser.add_argument("--items", type=int, default=50, help="items of each task")
    parser.add_argument("--width", type=int, default=64, help="width of the model")
    parser.add_argument("--backend", default="ndarray", help="backend of nvfp4")
    parser.add_argument("--batch-size", type=int, default=16, help="of the harness")
    arguments = parser.parse_args()

    import lm_eval
    import torch
    from lm_eval.models.huggingface import HFLM

    torch.set_num_threads(os.cpu_count() or 1)
    work = arguments.work.resolve()
    data, checkpoint = work / "data", work / "checkpoint"
    for folder in (data, checkpoint):
        shutil.rmtree(folder, ignore_errors=True)
    questions = copy_data(arguments.data, data, arguments.items)
    corpus = [question["question"] for question in questions[:2000]]
    model, tokenizer = make_checkpoint(checkpoint, corpus, arguments.width)
    text = "\n".join(corpus[2 * i] for i in range(60))
    (work / "text.txt").write_text(text, encoding="utf-8")
    lm = HFLM(
        pretrained=model,
        tokenizer=tokenizer,
        backend="causal",
        batch_size=arguments.batch_size,
        max_length=WINDOW,
        device="cpu",
    )
    print(f"lm_eval {lm_eval.__version__}, torch {torch.__version__}, {WINDOW} tokens of window")

    def ours(tasks, shots, *more):
        asked = ["--task", ",".join(tasks), "--shots", str(shots), "--backend", arguments.backend]
        return run_nvfp4(
            arguments.nvfp4, checkpoint, data, work / "results.jsonl", asked + list(more)
        )

    report = Report()
    normed = ["acc", "acc_norm"]
    mmlu = {"test": "test.jsonl", "dev": "dev.jsonl"}
    blimp = [
        (f"blimp/{subject}.yaml", {"train": f"blimp/{subject}.jsonl"}, data, subject)
        for subject in SUBJECTS["blimp"]
    ]

    def mmlu_parts(kind):
        return [
            (f"mmlu/{kind}/mmlu_{subject}.yaml", mmlu, data / "mmlu" / subject, subject)
            for subject in SUBJECTS["mmlu"]
        ]

    def single(definition, splits):
        return [(definition, splits, data, None)]

    zero_shot = {
        "lambada_openai": (
            single(
                "lambada/lambada_openai.yaml", {"test": "lambada/lambada_openai_test.jsonl"}
            ),
            ["acc"],
        ),
        "blimp": (blimp, ["acc"]),
        "piqa": (single("piqa/piqa.yaml", {"validation": "piqa/valid.jsonl"}), normed),
        "hellaswag": (
            single("hellaswag/hellaswag.yaml", {"validation": "hellaswag/val.jsonl"}),
            normed,
        ),
        "arc_easy": (single("arc/arc_easy.yaml", {"test": "arc/arc_easy_test.jsonl"}), normed),
        "arc_challenge": (
            single("arc/arc_challenge.yaml", {"test": "arc/arc_challenge_test.jsonl"}),
            normed,
        ),
        "winogrande": (
            single("winogrande/default.yaml", {"validation": "winogrande/val.jsonl"}),
            ["acc"],
        ),
        "mmlu": (mmlu_parts("default"), ["acc"]),
        "mmlu_continuation": (mmlu_parts("continuation"), ["acc"]),
    }
    five_shot = {
        "mmlu": (mmlu_parts("default"), ["acc"]),
        "arc_easy": (
            single(
                "arc/arc_easy.yaml",
                {"test": "arc/arc_easy_test.jsonl", "train": "arc/arc_easy_train.jsonl"},
            ),
            normed,
        ),
    }
    times = []
    for shots, tasks in ((0, zero_shot), (5, five_shot)):
        lines, our_seconds = ours(list(tasks), shots)
        their_seconds = 0.0
        for name, (parts, measures) in tasks.items():
            results = []
            for definition, splits, folder, part in parts:
                task = harness_task(definition, splits, folder, shots, part)
                found, seconds = score(lm, task)
                results += found
                their_seconds += seconds
            check_scores(report, f"{name}, {shots} shots", lines[name], results, measures)
        times.append((shots, our_seconds, their_seconds))

    text_lines, _ = run_nvfp4(
        arguments.nvfp4,
        checkpoint,
        data,
        work / "results.jsonl",
        ["--text", str(work / "text.txt"), "--backend", arguments.backend],
    )
    check_text(report, lm, text_lines["text"], text)

    lines, _ = ours(["gsm8k"], 2)
    splits = {"test": "gsm8k/test.jsonl", "train": "gsm8k/train.jsonl"}
    task = harness_task("gsm8k/gsm8k.yaml", splits, data, 2)
    results, _ = score(lm, task)
    check_generation(report, "gsm8k, 2 shots", lines["gsm8k"], task, results)

    generations.without_running_code()
    helpers = (read, write, raw_mmlu_pro_example)
    generations.copy_generation_data(arguments.data, data, 12, helpers)
    long = with_window(checkpoint, work / "long", LONG_WINDOW)
    long_lm = HFLM(
        pretrained=model,
        tokenizer=tokenizer,
        backend="causal",
        batch_size=arguments.batch_size,
        max_length=LONG_WINDOW,
        device="cpu",
    )
    for name, shots, tasks in generations.generation_tasks(data, harness_task):
        asked = ["--task", name, "--shots", str(shots), "--backend", arguments.backend]
        lines, _ = run_nvfp4(arguments.nvfp4, long, data, work / "results.jsonl", asked)
        title = f"{name}, {shots} shots"
        generations.check_texts(report, title, lines[name], tasks, score, long_lm)
    generations.check_answers(
        report, arguments.tool, work, arguments.data, harness_task, read, write
    )

    for shots, our_seconds, their_seconds in times:
        report.line(
            our_seconds <= their_seconds,
            f"time at {shots} shots: nvfp4 {our_seconds:.1f} s as a process, lm_eval "
            f"{their_seconds:.1f} s of scoring alone, ratio {their_seconds / our_seconds:.2f}",
        )
    print("all checks passed" if not report.failed else f"{report.failed} checks failed")
    return 1 if report.failed else 0


if __name__ == "__main__":
    sys.exit(main())
