"""Tasks in which a model writes, and how answers are found in what was written.

1. Prompts and texts: the same greedy text from both sides, for a tiny random model, to the limit of
   the task.
2. Answers: a random model gives none, so the rules are tried on texts that are made here: the
   published solutions, other spellings of their answers, wrong answers. `interop judge` reads them
   with our rules, the harness with its filters and metrics.

The harness asks a computer algebra system whether two formulas of MATH are equal; ours compares
their normal forms. So the normal forms have to be the same strings, and where the verdicts differ,
it is the harness that says "equal"; how often is printed.

HumanEval's prompts and texts are compared, and nothing that was written is run: the metric of the
harness, which would run it, is replaced before its task is read.
"""

import json
import subprocess

MATH_SHOTS = 4
INVALID = "[invalid]"


def without_running_code():
    """The harness loads the metric that runs code, from the network, when it reads HumanEval."""
    import evaluate

    class Never:
        def compute(self, **_):
            return {}, {}

    evaluate.load = lambda *_, **__: Never()


def copy_generation_data(source, target, count, helpers):
    """The first items of each task, in our files and in those that the harness reads."""
    read, write, raw_mmlu_pro_example = helpers
    from lm_eval.tasks.minerva_math.utils import list_fewshot_samples

    write(target / "math/math500_test.jsonl", read(source / "math/math500_test.jsonl", count))
    write(target / "math/shots.jsonl", list_fewshot_samples())
    write(target / "humaneval/HumanEval.jsonl", read(source / "humaneval/HumanEval.jsonl", count))
    items, examples = [], read(source / "mmlu_pro/fewshot_tigerlab.jsonl")
    published = read(source / "mmlu_pro/test.jsonl")
    for category in ("biology", "law"):
        of_category = [item for item in published if item["category"] == category][: count // 2]
        items += of_category
        shots = [raw_mmlu_pro_example(e) for e in examples if e["category"] == category]
        for part, lines in (("test", of_category), ("validation", shots)):
            lines = [mmlu_pro_fields(line) for line in lines]
            write(target / f"mmlu_pro/{category}/{part}.jsonl", lines)
    write(target / "mmlu_pro/test.jsonl", items)
    write(target / "mmlu_pro/fewshot_tigerlab.jsonl", examples)


def mmlu_pro_fields(line):
    """The fields that the harness reads, the same ones in questions and in examples."""
    fields = ("category", "question", "options", "answer", "cot_content")
    return {"answer": "", "cot_content": ""} | {key: line[key] for key in fields if key in line}


def generation_tasks(data, harness_task):
    """Name, shots, and the harness's tasks for each of ours but GSM8K."""
    splits = {"test": "test.jsonl", "validation": "validation.jsonl"}
    mmlu_pro = [
        harness_task(f"mmlu_pro/mmlu_pro_{part}.yaml", splits, data / "mmlu_pro" / part, 5, part)
        for part in ("biology", "law")
    ]
    math = {"test": "math/math500_test.jsonl"}
    humaneval = {"test": "humaneval/HumanEval.jsonl"}
    return [
        ("mmlu_pro", 5, mmlu_pro),
        (
            "math_500",
            MATH_SHOTS,
            [harness_task("minerva_math/minerva_math500.yaml", math, data, MATH_SHOTS)],
        ),
        ("humaneval", 0, [harness_task("humaneval/humaneval.yaml", humaneval, data, 0)]),
    ]


def check_texts(report, name, lines, tasks, score, lm):
    """1. for one task."""
    lines = [line for line in lines if line["line"] == "item"]
    texts = [answers[0] for task in tasks for answers, _ in score(lm, task)[0]]
    ours = [line["generation"]["text"] for line in lines]
    equal = sum(a == b for a, b in zip(ours, texts, strict=True))
    characters = sum(map(len, texts))
    report.line(
        equal == len(texts),
        f"{name}: {equal} of {len(texts)} generated texts are equal, {characters} characters",
    )


def judged(task, texts):
    """What the harness finds in texts for the documents of a task, and whether it is right."""
    for instance, text in zip(task.instances, texts, strict=True):
        instance.resps = [text]
    task.apply_filters()
    found = {name: [] for name in task.instances[0].filtered_resps}
    for instance in task.instances:
        for name, answer in instance.filtered_resps.items():
            right = task.process_results(instance.doc, [answer])["exact_match"]
            found[name].append((answer, bool(right)))
    return found


def run_judge(tool, work, rule, texts, golds):
    """What our rule finds."""
    cases, out = work / "cases.jsonl", work / "verdicts.jsonl"
    with open(cases, "w", encoding="utf-8") as lines:
        for text, gold in zip(texts, golds, strict=True):
            lines.write(json.dumps({"rule": rule, "text": text, "gold": gold}) + "\n")
    subprocess.run([str(tool), "judge", str(cases), str(out)], check=True)
    with open(out, encoding="utf-8") as lines:
        return [json.loads(line) for line in lines]


def compare(report, name, ours, theirs, measures):
    """Answers and verdicts of each measure: both must be the same."""
    for their_name, our_name in measures.items():
        differing = 0
        for verdict, (answer, right) in zip(ours, theirs[their_name], strict=True):
            mine = verdict[our_name]
            differing += mine["answer"] != answer or mine["correct"] != right
        right = sum(right for _, right in theirs[their_name])
        report.line(
            differing == 0,
            f"{name}, {our_name}: {differing} of {len(ours)} verdicts differ, {right} are right",
        )


def check_gsm8k(report, tool, work, task):
    docs = [instance.doc for instance in task.instances]
    golds = [doc["answer"] for doc in docs]
    numbers = [gold.split("#### ")[1] for gold in golds]
    texts = [
        ("its solution", [" " + gold for gold in golds]),
        ("a sentence", [f" So the answer is ${number}.00 or {number}." for number in numbers]),
        ("two numbers", [f" It is 7.\n#### {number}.\n#### 12" for number in numbers]),
        ("another's solution", golds[1:] + golds[:1]),
        ("no number", [" None." for _ in docs]),
    ]
    for name, texts in texts:
        measures = {"strict-match": "exact_match", "flexible-extract": "flexible_extract"}
        ours = run_judge(tool, work, "gsm8k", texts, golds)
        compare(report, f"gsm8k, {name}", ours, judged(task, texts), measures)


def check_mmlu_pro(report, tool, work, task):
    golds = [instance.doc["answer"] for instance in task.instances]
    forms = [
        ("a letter", " Look at it. The answer is ({})."),
        ("no brackets", " So the answer is {}"),
        ("two answers", " The answer is (A). No, the answer is ({})."),
        ("no such letter", " The answer is (K). {}"),
        ("no sentence", " Answer: {}"),
    ]
    for name, form in forms:
        texts = [form.format(gold) for gold in golds]
        ours = run_judge(tool, work, "mmlu_pro", texts, golds)
        measures = {"custom-extract": "exact_match"}
        compare(report, f"mmlu_pro, {name}", ours, judged(task, texts), measures)


def check_math(report, tool, work, task):
    from lm_eval.tasks.minerva_math import utils

    docs = [instance.doc for instance in task.instances]
    golds = [utils.remove_boxed(utils.last_boxed_only_string(doc["solution"])) for doc in docs]
    close = " Final Answer: The final answer is {}. I hope it is correct."
    respelled = [
        gold.replace("\\frac", "\\dfrac").replace("\\left(", "(").replace("\\right)", ")")
        for gold in golds
    ]
    forms = [
        ("its answer", [close.format(f"${gold}$") for gold in golds]),
        ("without dollars", [close.format(f"x = {gold}") for gold in golds]),
        ("with a unit", [close.format(f"${gold}$ cm") for gold in golds]),
        ("other commands", [close.format(f"${answer}$") for answer in respelled]),
        ("another's answer", [close.format(f"${gold}$") for gold in golds[1:] + golds[:1]]),
        ("no sentence", [" It is $" + gold + "$." for gold in golds]),
    ]
    for name, texts in forms:
        ours = run_judge(tool, work, "math", texts, golds)
        forms_differ, only_theirs, only_ours, right = 0, 0, 0, 0
        for verdict, text, doc in zip(ours, texts, docs, strict=True):
            mine = verdict["exact_match"]
            theirs = utils.normalize_final_answer(utils.get_unnormalized_answer(text))
            theirs_as_ours = INVALID if theirs == "[invalidanswer]" else theirs
            is_right = utils.is_equiv(theirs, doc["answer"])
            forms_differ += mine["answer"] != theirs_as_ours
            only_theirs += is_right and not mine["correct"]
            only_ours += mine["correct"] and not is_right
            right += is_right
        report.line(
            forms_differ == 0 and only_ours == 0,
            f"math_500, {name}: {forms_differ} of {len(docs)} normal forms differ; {right} are "
            f"right to the harness, {only_theirs} of them not to us, {only_ours} only to us",
        )


def check_answers(report, tool, work, source, harness_task, read, write):
    """2."""
    folder = work / "answers"
    write(folder / "gsm8k/test.jsonl", read(source / "gsm8k/test.jsonl", 300))
    # The harness looks for the split of examples also where none is taken.
    splits = {"test": "gsm8k/test.jsonl", "train": "gsm8k/test.jsonl"}
    gsm8k = harness_task("gsm8k/gsm8k.yaml", splits, folder, 0)
    check_gsm8k(report, tool, work, gsm8k)
    items = [item for item in read(source / "mmlu_pro/test.jsonl") if item["category"] == "law"]
    write(folder / "mmlu_pro/test.jsonl", [mmlu_pro_fields(item) for item in items[:300]])
    splits = {"test": "mmlu_pro/test.jsonl", "validation": "mmlu_pro/test.jsonl"}
    mmlu_pro = harness_task("mmlu_pro/mmlu_pro_law.yaml", splits, folder, 0)
    check_mmlu_pro(report, tool, work, mmlu_pro)
    write(folder / "math/test.jsonl", read(source / "math/math500_test.jsonl"))
    splits = {"test": "math/test.jsonl"}
    math = harness_task("minerva_math/minerva_math500.yaml", splits, folder, 0)
    check_math(report, tool, work, math)
