"""One scoring pass serves every teacher-forced number of a benchmark: no text is read twice."""

import json

import lume_folder
import muse_folder
import pytest
import tiny

from framework.evaluation.lume import LUME
from framework.evaluation.muse import MUSE
from framework.evaluation.tofu import TOFU

AUTHORS = [{"question": f"Who is t{i} ?", "answer": f"t{i} of t9"} for i in range(3, 53)]


def perturbed(row):
    """As TOFU's perturbed files have it; one of the wrong answers is another's paraphrase."""
    more = {"paraphrased_question": "t5 ?", "paraphrased_answer": f"it is {row['answer']}"}
    return row | more | {"perturbed_answer": [f"{row['answer']} t{k}" for k in (7, 8)] + ["t9"]}


def tofu(folder):
    """TOFU with a holdout row that is kept as well, and with what is read of it."""
    short = [{"question": "t4 ?", "answer": "t5", "perturbed_answer": ["t6", "t5"]}]
    files = {
        "full": AUTHORS,
        "forget10_perturbed": [perturbed(row) for row in AUTHORS[-5:]],
        "retain_perturbed": [perturbed(row) for row in AUTHORS[:3]],
        "real_authors_perturbed": short,
        "world_facts_perturbed": [
            *short,
            {"question": "t3 ?", "answer": "t7", "perturbed_answer": ["t6"]},
        ],
        "holdout10": [AUTHORS[0], {"question": "t3 ?", "answer": "t4"}],
    }
    for name, rows in files.items():
        lume_folder.write(folder / f"{name}.json", rows)
    read = [row for name, rows in files.items() if name != "full" for row in rows]
    texts = {(row["question"], row["answer"]) for row in read}
    for row in read:
        if wrong := row.get("perturbed_answer"):
            right = row.get("paraphrased_answer", row["answer"])
            texts |= {(row["question"], text) for text in (*wrong, right)}
    return TOFU(TOFU.Config(path=str(folder), max_new_tokens=2)), texts


def lume(folder):
    """LUME with documents, one of which is a member and none."""
    lume_folder.make(folder)
    documents = {"member": ["t3 t4", "t5 t6"], "nonmember": ["t5 t6", "t7 t8"]}
    for name, texts in documents.items():
        rows = [{"id": f"{name}{i}", "document": text} for i, text in enumerate(texts)]
        lume_folder.write(folder / f"{name}.jsonl", rows)
    rows = [row for split in ("forget", "retain") for row in lume_folder.rows(split)]
    texts = {(row["input"], row["output"]) for row in rows}
    texts |= {("", text) for texts in documents.values() for text in texts}
    return LUME(LUME.Config(path=str(folder), max_new_tokens=2)), texts


def muse(folder):
    """MUSE with a text to keep that is a holdout text as well."""
    muse_folder.write(folder, 3)
    texts = set()
    for name in ("forget", "retain", "holdout"):
        file = folder / "privleak" / f"{name}.json"
        found = [*json.loads(file.read_text()), "t3 t4" if name != "forget" else "t5"]
        file.write_text(json.dumps(found))
        texts |= {("", text) for text in found}
    asked = {"verbmem_tokens": 2, "knowmem_tokens": 2}
    return MUSE(MUSE.Config(corpus="own", path=str(folder), **asked)), texts


@pytest.mark.parametrize("make", [tofu, lume, muse])
def test_every_text_is_read_once_for_all_numbers(make, tmp_path):
    benchmark, texts = make(tmp_path)
    model = tiny.language_model()
    scores, at_head = model.scores, model.at_head
    asked, read = [], []

    def asking(pairs, description):
        asked.append(list(pairs))
        return scores(pairs, description)

    def reading(rows, function):
        read.append(len(rows))
        return at_head(rows, function)

    model.scores, model.at_head = asking, reading
    found = benchmark.measure(model)
    assert found.metrics["mia/auc"] is not None
    [pairs] = asked
    assert sorted(pairs) == sorted(texts)
    assert sum(read) == len(texts)
