"""What cannot be done is one sentence, before anything is loaded or written, at every command."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path
from typing import Any

import pytest

# Each command, and what may be said wrongly behind it with the words of the refusal. What stands
# in <> is a file or folder that a fixture makes.
REFUSALS: dict[str, list[tuple[str, str]]] = {
    "run <steer>": [
        ("--set seed", "--set 'seed' is not of the form a.b=c"),
        ("--set 'seed=[1'", "--set 'seed=[1' is not YAML"),
        ("--set name.x=3", "setting name.x: name is a single value and has no fields"),
        ("--set sead=1", "sead is not a known setting (did you mean 'seed'?)"),
        ("--set positive_key=kind", "(did you mean 'pairs.positive_key'?)"),
        ("--set evaluation.kl_target=300", "kl_target: input should be less than or equal to 20"),
        ("--set seed=yes", "seed: true is a yes or no"),
        ("--set model=gpt2", "model: needs fields of its own"),
        ("--set name=../elsewhere", "name: string should match pattern"),
        ("--set evaluation.kl_target=.nan", "kl_target: input should be a finite number"),
        ("--set 'selection={min_firing: 0.7}'", "min_firing (0.7) is above max_firing"),
        ("--set pairs.source=nowhere.csv", "nowhere.csv"),
        ("--set pairs.format=xml", "format is 'xml'"),
        ("--set pairs.source=agreeablenes", "'agreeablenes' (did you mean"),
        ("--set pairs.source=one.jsonl", "one.jsonl:2: "),
        ("--set pairs.source=few.jsonl", "leaves 1 training and 1 test pairs; give more"),
        (
            "--set 'pairs={validation: 0.5, test: 0.5, source: few.jsonl}'",
            "leave no pairs to train on",
        ),
        ("--set model.name=./nowhere", "neither an existing folder"),
        ("--set model.name=none.gguf", "none.gguf is not there"),
        ("--set sae=./nowhere", "neither an existing folder"),
        ("--set sae=gpt2-small-res-jp:x", "no release 'gpt2-small-res-jp'; did you"),
        ("--set site=here", "site 'here' is not of the form"),
        ("--set selection.criterion=zzz", "selection.criterion: 'zzz' is not known (known: mean_d"),
        ("--set clustering.method=aglomerative", "did you mean 'agglomerative'"),
        ("--set 'clustering={n_clusters: 3, method: hdbscan}'", "hdbscan finds its own number"),
        ("--set evaluation.neutral=no.jsonl", "no.jsonl"),
        ("--set completions.questions=no.txt", "no.txt"),
        ("--set folder=one.jsonl", "is a file; choose another"),
        ("--set folder=/proc", "cannot be written ("),
        ("--set folder=/proc --dry-run", "cannot be written ("),
        ("--set name=sk-1234567890abcdefgh", "name: it holds a key"),
        ("--set seed=" + "9" * 400, "more than 300 digits"),
        ("--set folder=" + "x" * 300, "); choose another"),
        ("--set 'folder=\"a\\0b\"'", "); choose another"),
    ],
    "compare <compare>": [
        ("--set personas=[]", "personas: list should have at least 1 item"),
        ("--set 'personas=[a.jsonl, b/a.csv]'", "personas: a stands there twice"),
        ("--set 'personas=[{source: a, name: x/y}]'", "personas.0.name"),
        ("--set personas=[kindlyness]", "persona kindlyness: "),
        ("--set personas=[one.jsonl]", "persona one: "),
        ("--set personas=[few.jsonl]", "few.jsonl: its 3 pairs are fewer"),
        ("--set 'methods=[difference_in_means, pca, pcaa]'", "(did you mean 'pca'?)"),
        ("--set methods=[pca]", "baseline 'difference_in_means' is not one of the"),
        ("--set 'methods=[difference_in_means, {name: pca, grid: [{x: 1}]}]'", "method pca: x is"),
        ("--set 'methods=[difference_in_means, system_prompt]' --set headline=system_prompt",
         "has no strength to"),
        ("--set writing.methods=[caa_answers]", "writing.methods 'caa_answers' is not one of"),
        ("--set writing.kl_targets=[0.2] --set writing.n_questions=1", "0.2 is not one of"),
        ("--set evaluation.headline_kl_target=0.2", "headline_kl_target 0.2 is not one of the"),
        ("--set 'evaluation.kl_targets=[0.05, 0.05]'", "are not different KL targets above 0"),
        ("--set 'evaluation.multiples=[1, 1]'", "names a multiple twice; name each once"),
        ("--set 'methods=[difference_in_means, attributed_sae]' --set headline=attributed_sae "
         "--set evaluation.neutral_answers=6", "none is left to train with"),
        ("--set 'seeds=[1, 1]'", "are not different numbers from 0"),
        ("--set random.directions=-1", "random.directions"),
        ("--persona a/x.csv --persona b/x.csv", "x stands there twice"),
        ("--only kindlyness", "--only 'kindlyness' is no persona here"),
    ],
    "generate Why?": [
        ("--strength -0.2", "a strength needs a vector; give --vector RUN"),
        ("--vector nowhere", "nowhere: there is no such steering vector"),
        ("--vector cut.safetensors", "cut.safetensors: cannot be read as safetensors"),
    ],
    "generate Why? --vector <steered>": [
        ("--strength nan", "strength nan is not finite"),
        ("--strength 'a lot'", "strength 'a lot' is not a number"),
        ("--unit percent", "unit 'percent' is unknown; use one of norm, raw, max_act"),
        ("--unit max_act", "needs max_act, which the vector 'tiny' does not carry"),
        ("--samples 3", "--samples 3 at temperature 0 would all be equal"),
        ("''", "a prompt is empty"),
    ],
    "vector": [
        ("show nowhere", "nowhere: there is no such steering vector"),
        ("export <steered> v.gguf --strength nan", "strength nan is not finite"),
        ("export <steered> v.gguf --strength 1 --unit max_act", "needs max_act"),
        ("export <steered> one.jsonl/v.gguf", "cannot be written"),
        ("import nowhere.gguf m .", "nowhere.gguf: there is no such control"),
        ("import one.jsonl m .", "no whole GGUF file"),
        ("combine v.safetensors <steered>*x", "'x' is no finite number; write PATH"),
        ("combine v.safetensors <steered>*0", "a vector times 0 has no direction"),
        ("combine v.safetensors <steered> <steered>*-1", "is zero, so it has no"),
        ("combine one.jsonl/v.safetensors <steered>", "cannot be written"),
    ],
    "features": [(".", "holds no features.json"), ("nowhere", "holds no features.json")],
    "patch": [
        ("lens", "there is no prompt to read"),
        ("lens ' '", "a prompt is empty"),
        ("lens --pairs capitols", "no bundled set of prompt pairs called 'capitols'"),
        ("ioi --set metric=hope", "patch/ioi: metric"),
        ("ioi --model ./nowhere", "nowhere"),
        ("ioi capitals", "'capitals' is no setting of the form key=value"),
        ("show nowhere", "holds no finished experiment"),
    ],
    "patch run <patch>": [
        ("--set pairs.source=bad.json", "bad.json:1: record 1: clean: the field"),
        ("--set pairs={}", "give either source"),
        ("--set components=[z,z]", "'z' is named twice"),
        ("--set by_position=[v]", "no head component of components"),
        ("--set 'path={receivers: [\"9.9\"]}'", "'9.9' is no receiver"),
        ("--set 'path={receivers: [[final, 9.9.q]]}'", "heads' inputs alone"),
        ("--set 'attention={heads: [nine]}'", "'nine' is no head"),
        # A bare 9.10 in YAML is the number 9.1.
        ("--set 'circuit={heads: [9.10]}'", "9.1 is no head; write its layer and number in"),
        ("--set features.vector=v.safetensors", "name it as sae"),
        ("--set sae=./nowhere", "nowhere"),
    ],
    "probe read <probed>": [
        ("", "there is no text to read"),
        ("' '", "a text is empty"),
        ("hi --layers 9", "layer 9 has no probe"),
        ("--checks nothing", "no bundled set called 'nothing'"),
    ],
    "probe intervene <probed>": [
        ("", "there is no prompt"),
        ("hi --mode flop", "did you mean 'flip'"),
        ("hi --mode set", "mode set needs an amount"),
        ("hi --amount lots", "class 'lots' is unknown"),
        ("hi --direction up", "direction 'up' is unknown"),
        ("hi --positions first", "positions 'first' are unknown"),
        ("hi --schedule now", "is not of the form"),
        ("hi --towards happy", "class 'happy'"),
        ("hi --samples 3", "would all be equal"),
        ("--prompts sentiment_prompts --group x", "no prompt is of group"),
    ],
    "probe": [
        ("read . hi", "there are no probes"),
        ("train <probe> --set data.source=one.csv", "all 2 texts have the label 'x'"),
    ],
    "corrupt run <corrupt>": [
        ("--set 'programs=[skip 9]'", "names layer 9"),
        ("--set programs=[skip]", "programs.0: program 'skip': 'skip' is not understood"),
        ("--set families=[] --set programs=[]", "nothing to run"),
        ("--set 'families=[{kind: sideways}]'", "families.0.kind"),
        ("--set 'families=[{kind: skip}, {kind: skip}]'", "names a kind twice"),
        ("--set 'families=[{kind: linear}]' --set reference.source=none.txt", "is not there"),
        ("--set \"completions={prompts: [' ']}\"", "holds an empty prompt"),
        ("--set 'completions={programs: [skip 9]}'", "layer 9"),
    ],
    "corrupt complete hi --model <model>": [
        ("' '", "a prompt is empty"),
        ("--program jump", "is not understood"),
        ("--program 'skip 3'", "names layer 3"),
        ("--program 'linear 1'", "needs texts"),
        ("--family linear", "is unknown here"),
    ],
    "corrupt tasks": [
        ("chess", "no bundled one"),
        ("chess --write .", "no rule makes chess"),
        ("--llm m", "--llm needs --write"),
        ("--llm m --write . --max-cost 1", "needs the prices"),
        ("--llm m --write . --base-url ftp://x", "base_url"),
    ],
    "doctor": [
        ("--sae ./nowhere", "neither an existing folder"),
        ("--sae <sae> --model ./nowhere", "neither an existing folder"),
        ("--sae <sae> --text nowhere.txt", "nowhere.txt"),
        ("--sae <sae> --text nowhere.pdf", "texts are read from .txt"),
    ],
    "sae train": [
        ("nothing.jsonl", "nothing.jsonl is not there"),
        ("<trained> --set d_sea=3", "did you mean 'd_sae'"),
        ("<trained> --set k=9999", "must be smaller than d_sae"),
    ],
    "sweep <sweep>": [
        ("--set x", "is not of the form"),
        ("--slurm gpu", "--slurm 'gpu' is not of the form"),
        ("--set site=here", "site 'here'"),
    ],
    "worker --study": [
        ("nowhere", "nowhere"),
        ("nosuchbase://x", "nosuchbase"),
        ("sqlite:////nowhere/at/all.db", "nowhere"),
    ],
    "agent <agent>": [
        ("--set experiments.corrupt.tasks.shot=1", "tasks.shot is not a known setting"),
        ("--set search=null", "needs a search"),
        ("--set \"goal=''\"", "goal"),
        ("--model m --set budget.money=1", "needs planner.price_in"),
        ("--set search.kind=probe", "is none of the experiments"),
        ("--set search.batch=seed", "is none of the parameters"),
        ("--model m --base-url ftp://x", "base_url"),
    ],
    "steer": [
        ("", "there is nothing to run"),
        ("agreeableness --kl -1", "evaluation.kl_target"),
    ],
    "configs": [("dept", "did you mean 'depth'?")],
}  # fmt: skip
READS_SETTINGS = ("run", "compare", "patch run", "probe train", "corrupt run", "sae train")
for command in (*READS_SETTINGS, "sweep", "agent"):
    REFUSALS.setdefault(command, []).append(("nowhere.yaml", "nowhere.yaml cannot be read"))
FEW = (("Cats sleep.", "Dogs bark."), ("We sing.", "They howl."), ("Yes.", "Never!"))
FILES = {
    "one.jsonl": '{"positive": "I like you.", "negative": "I do not."}\n{"positive": "Alone."}',
    "few.jsonl": "\n".join(json.dumps({"positive": p, "negative": n}) for p, n in FEW),
    "one.csv": "text,label\na,x\nb,x\n",
    "bad.json": '[{"clean": {"question": "a"}}]',
    "cut.safetensors": "\x00" * 40,
}


@pytest.fixture
def places(request) -> Any:
    """Return a function from a word in <> to the path that it stands for."""
    kinds = {"compare", "patch", "probe", "corrupt"}
    fixtures = {
        "steer": "config",
        "steered": "finished",
        "probed": "probe_run",
        "sweep": "sweep_file",
        "agent": "agent_file",
    }

    def place(word: str) -> Path:
        value = request.getfixturevalue
        if word in kinds:
            return value("settings_file")(word)
        if word == "trained":
            return value("settings_file")("train_sae")
        if word == "model":
            return value("tiny_model_folder")("llama")
        if word == "sae":
            return value("mirror_sae")()
        found: Any = value(fixtures[word])
        made: Any = found() if callable(found) else found
        return made

    return place


@pytest.mark.parametrize(
    ("words", "told"),
    [(f"{command} {row}", told) for command, rows in REFUSALS.items() for row, told in rows],
    ids=lambda value: value[:70],
)
def test_what_cannot_be_done_is_one_sentence_before_anything_is_loaded_or_written(
    words, told, places, request, tmp_path, monkeypatch
):
    given = [
        re.sub("<(.*?)>", lambda found: str(places(found[1])), word) for word in shlex.split(words)
    ]
    # Only now, as what a fixture makes may need a model.
    request.getfixturevalue("no_loading")
    refused = request.getfixturevalue("refused")
    monkeypatch.chdir(tmp_path)
    for name, text in FILES.items():
        (tmp_path / name).write_text(text, encoding="utf-8")
    before = sorted(tmp_path.rglob("*"))
    assert told in refused(*given)
    assert sorted(tmp_path.rglob("*")) == before
