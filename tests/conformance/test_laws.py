"""Every law as it is told: what is asked, and what to do where it is broken; the README lists their names."""

from __future__ import annotations

import re
from pathlib import Path

import minerua.conformance
from minerua.conformance.candidates import PLUGIN_CHECKS
from minerua.conformance.examination import SETTINGS, SPEC, checks_of
from minerua.conformance.examples import EXAMPLES
from minerua.conformance.families import FAMILY
from minerua.registry import KINDS

LAWS = {
    ("plugin", "loads"): (
        "a plugin loads through its entry point in a fresh interpreter, and its specs are valid",
        "repair what is named; `minerua plugins check` shows the same",
    ),
    ("plugin", "import-effects"): (
        "loading a plugin prints nothing, writes nothing and changes nothing that belongs to the whole process",
        "move it into the function that needs it, and put back what it changes",
    ),
    ("plugin", "import-light"): (
        "loading a plugin imports nothing heavy: every minerua command waits for it",
        "import it inside the functions that use it",
    ),
    ("plugin", "names"): (
        "no other installed plugin provides the same name for the same kind of thing",
        "choose names that say whose they are, such as the distribution's own",
    ),
    ("plugin", "provides"): (
        "a plugin provides at least one thing",
        "return a spec from a function that is marked @minerua.hookimpl and named like a hook",
    ),
    ("every", "spec"): (
        "a spec has every field that its kind needs, of the right type",
        "correct the field; minerua/values.py describes each",
    ),
    ("every", "examples"): (
        "the examples in the docstrings of a spec's functions run, and give what they say",
        "run the docstring with `python -m doctest`, and correct the code or the example",
    ),
    ("family", "family"): (
        "a family refuses a setting that it does not know with a ConfigError that names it",
        "collect every fault of the settings, and raise minerua.errors.ConfigError with all of them",
    ),
    ("family", "settings"): ("a family keeps the laws of what it makes", "hand settings over as Sample(settings={…})"),
    ("skill", "takes"): (
        "a call takes the inputs by their names, with and without the optional ones",
        "give the function one parameter per input, with a default for each optional one",
    ),
    ("skill", "returns"): (
        "a call returns a mapping with the outputs, of the types, dtypes and extents that its ports say",
        "correct the ports, or what is returned",
    ),
    ("skill", "optional"): (
        "a call can do without each optional input",
        "take the input out of optional, or give it a default that works",
    ),
    ("skill", "borrows"): ("a call leaves its inputs as they are", "change a copy; in a chain arrays are read-only"),
    ("skill", "pure"): (
        "what says that it is pure gives the same outputs for the same inputs",
        "leave pure out, or draw random numbers from a seed among the inputs",
    ),
    ("skill", "batchable"): (
        "what says that it can be batched gives joined calls what it gives each",
        "leave batchable out, or treat every row by itself",
    ),
    ("optimizer", "builds"): (
        "build takes parameter groups and returns a torch.optim.Optimizer whose groups have a rate",
        "return an instance of a subclass of torch.optim.Optimizer",
    ),
    ("optimizer", "parabola"): (
        "150 steps end within 0.05 of a parabola's minimum",
        "compare a step with the formula of its paper; or hand over settings that suit it, as Sample(settings=…)",
    ),
    ("optimizer", "valley"): (
        "600 steps fall to a tenth in the valley of Rosenbrock",
        "compare a step with the formula of its paper; or hand over settings that suit it, as Sample(settings=…)",
    ),
    ("optimizer", "mixed-shapes"): (
        "a scalar, a vector, a matrix and a tensor of four dimensions are learned together",
        "look at what is done to each shape; what is for matrices alone must leave the others to another rule",
    ),
    ("optimizer", "state"): (
        "an optimizer that was given the state of another goes on bit for bit",
        "keep everything that a step needs in self.state or in the groups, so that state_dict has it",
    ),
    ("optimizer", "repeatable"): (
        "the same start and the same seed give the same bits",
        "draw random numbers from torch's generator alone, and nothing from clocks or addresses",
    ),
    ("optimizer", "groups"): (
        "groups have settings of their own, and a parameter without a gradient stays where it is",
        "read settings from the group, not from the defaults, and pass over parameters whose grad is None",
    ),
    ("optimizer", "unknown-setting"): (
        "a setting that it does not know raises a TypeError that names it",
        "name every setting as a keyword of build; do not take **settings and drop what is left",
    ),
    ("loss", "finite"): (
        "a loss is a finite scalar above zero that depends on its predictions, and leaves its targets alone",
        "look at empty denominators and logarithms of zero; work on copies",
    ),
    ("loss", "gradient"): (
        "the gradient is that of central differences, to five digits in float64, to two in float32",
        "look for detach, item, rounding and in-place changes between the predictions and the result",
    ),
    ("loss", "count"): (
        "count tells how many terms the mean is over",
        "return a number from the targets alone, such as targets.numel()",
    ),
    ("loss", "parts"): (
        "a batch in parts, each weighed by its count, is the whole batch within 1e-6",
        "return the mean over what count counts; where a batch cannot be parted, declare the exemption",
    ),
    ("loss", "repeatable"): ("the same arguments give the same bits", "take nothing from clocks or addresses"),
    ("loss", "unknown-setting"): (
        "a setting that a loss does not know raises a TypeError that names it",
        "name every setting as a keyword of call; do not swallow the rest with **settings",
    ),
    ("evaluator", "items"): (
        "items() returns the ids of all items: at least three texts, not empty, unique, the same at every call",
        "name each item by what it is, not by its place in a list that changes",
    ),
    ("evaluator", "outcomes"): (
        "evaluate returns one outcome in [0, 1] per id, within the time limit",
        "give every item a number, 0 for an answer that is none; scale what is measured",
    ),
    ("evaluator", "repeatable"): (
        "the same arguments give the same outcomes",
        "draw whatever is random from the seed that is handed in",
    ),
    ("evaluator", "apart"): (
        "an item's outcome depends neither on the other items of the call nor on their order",
        "score each item by itself: outcomes are kept by item, and looked up one by one",
    ),
    ("evaluator", "many"): (
        "evaluate_many gives each model what evaluate gives it",
        "share the work, not the outcomes: compare the two on a small model",
    ),
    ("evaluator", "inputs"): (
        "inputs(ids) returns the same inputs for the same ids",
        "take them from the items alone; return None where there are none to offer",
    ),
    ("evaluator", "exhibit"): (
        "exhibit(model, ids) returns Exhibits of these items, at most one of each, the same at every call",
        "show what evaluate looks at: the item, the answer, and what it is worth, as a text or as a PNG",
    ),
    ("model", "builds"): (
        "build makes something that can be called of read-only arrays",
        "copy what must be written; return an object with __call__",
    ),
    ("model", "borrows"): ("weights are borrowed: neither build nor a call changes them", "work on copies"),
    ("model", "repeatable"): (
        "the same weights give the same answers to the same inputs",
        "switch to evaluation; leave dropout and unseeded draws out",
    ),
    ("model", "activations"): (
        "activations names matrices of the weights, with inputs of shape (rows, n), float32, finite",
        "use the names that the weights have in their checkpoint; flatten all axes but the last",
    ),
    ("model", "module"): (
        "module returns a fresh torch.nn.Module whose state_dict has the names that build takes",
        "make a new module in every call, with parameters named like the weights",
    ),
    ("model", "learned-is-built"): (
        "what was learned as a module answers the same when it is built",
        "let both run the same forward function",
    ),
    ("model", "open"): (
        "children over one base answer as models that are built by themselves",
        "add left @ core @ right.T, or core alone where there are no bases, to the base's tensor",
    ),
    ("merge method", "shape-and-dtype"): (
        "every merged tensor has the shape and dtype that was asked for, and finite numbers everywhere",
        "return a fresh float32 array of the inputs' shape, or write every element of the target",
    ),
    ("merge method", "zeros"): (
        "models that are all zero merge to zero, without NaN",
        "guard every division by a norm or a sum",
    ),
    ("merge method", "agreement"): (
        "models that are all the same as the base merge to it",
        "repair the formula; where the method is not meant to keep this, declare the exemption and say why",
    ),
    ("merge method", "one-expert"): (
        "one expert of weight 1 merges to itself",
        "repair the formula; where the method is not meant to keep this, declare the exemption and say why",
    ),
    ("merge method", "equal-experts"): (
        "equal experts whose weights sum to 1 merge to themselves",
        "repair the formula; where the method is not meant to keep this, declare the exemption and say why",
    ),
    ("merge method", "zero-weight"): (
        "an expert of weight 0 changes nothing",
        "repair the formula; where the method is not meant to keep this, declare the exemption and say why",
    ),
    ("merge method", "permutation"): (
        "the order of the experts, each with its weight, changes nothing",
        "repair the formula; where the method is not meant to keep this, declare the exemption and say why",
    ),
    ("merge method", "repeatable"): (
        "the same models give the same bits",
        "draw whatever is random from the seed that is handed in",
    ),
    ("merge method", "borrows"): ("a merge leaves the weights that it is lent as they are", "work on copies"),
}


def all_laws():
    laws = {("plugin", check.name): check for check in PLUGIN_CHECKS}
    laws |= {("every", check.name): check for check in (SPEC, EXAMPLES)}
    laws |= {("family", check.name): check for check in (FAMILY, SETTINGS)}
    for kind in KINDS:
        laws |= {(kind.singular, check.name): check for check in checks_of(kind)[2:]}
    return laws


def test_every_law_says_what_it_asks_and_what_to_do():
    assert {key: (check.asked, check.remedy) for key, check in all_laws().items()} == LAWS


def test_names_of_laws_are_unique_within_their_kind():
    for kind in KINDS:
        names = [check.name for check in checks_of(kind)]
        assert len(set(names)) == len(names)


def test_the_readme_lists_every_law_and_no_other():
    text = (Path(minerua.conformance.__file__).parent / "README.md").read_text("utf-8")
    table = text.partition("| kind | laws |")[2].partition("\n\n")[0]
    rows = re.findall(r"^\| ([a-z ]+?) \| (.+) \|$", table, re.MULTILINE)
    said = {
        ("every" if kind == "every thing" else kind, law) for kind, laws in rows for law in re.findall(r"`(.+?)`", laws)
    }
    assert said == set(all_laws())
