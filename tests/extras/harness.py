"""A text scored as lm_eval asks for it."""

from lm_eval.api.instance import Instance

from plait.evaluate.harness import PlaitLM

model = PlaitLM("runs/letters", device="cpu")
((score, _),) = model.loglikelihood([Instance("loglikelihood", {}, ("fox number", " 3"), 0)])
assert score < 0
